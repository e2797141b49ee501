"""Find the layers that read a model's input, by following it through one forward pass."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ConfigError
from .train_mode import in_mode

Example = Union[Tensor, tuple, Mapping[str, Any], Callable[[nn.Module], Any]]
"""An input of a model: a tensor, a tuple of arguments, a dict of keyword arguments, or a function that runs it."""

TRACED = 'reads the input (traced)'


class _Followed(TorchDispatchMode):
    """Knows which tensors were computed from the input without a weight layer in between."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}  # they are kept, or another tensor could get their id

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.any_of((args, kwargs)):
            self.add(result)
        return result

    def any_of(self, values: Any) -> bool:
        return any(id(tensor) in self.tensors for tensor in _with_bases(values))

    def add(self, values: Any) -> None:
        self.tensors.update((id(tensor), tensor) for tensor in _with_bases(values))

    def drop(self, values: Any) -> None:
        for tensor in _with_bases(values):
            self.tensors.pop(id(tensor), None)


@dataclass
class Seen:
    """What one layer did in a pass.

    Attributes:
        reads_input: whether it read the model's input.
        macs: multiplications of its weight; None where they are not known.
    """

    reads_input: bool = False
    macs: Optional[int] = 0


def trace(model: nn.Module, example: Example, layers: Mapping[str, nn.Module]) -> dict[str, Seen]:
    """Run the model once, in evaluation mode, and see what its weight layers read.

    Args:
        model: it is not changed.
        example: an input.
        layers: name -> layer, all weight layers of the model.

    Returns:
        Name -> what the layer did, in the order in which the layers are called; those that are not called are missing.

    Raises:
        ConfigError: no layer reads a tensor of the example.
    """
    followed, found = _Followed(), dict[str, Seen]()

    def hooks_of(name: str) -> tuple[Callable, Callable]:
        def enter(layer, args, kwargs) -> None:
            seen = found.setdefault(name, Seen())
            seen.reads_input = seen.reads_input or followed.any_of((args, kwargs))

        def leave(layer, args, output) -> None:
            followed.drop(output)
            macs, seen = macs_of(layer, args, output), found[name]
            seen.macs = None if macs is None or seen.macs is None else seen.macs + macs

        return enter, leave

    with ExitStack() as stack:
        stack.enter_context(in_mode(model, False))
        stack.callback(
            model.register_forward_pre_hook(
                lambda module, args, kwargs: followed.add((args, kwargs)), with_kwargs=True, prepend=True
            ).remove
        )
        for name, layer in layers.items():
            enter, leave = hooks_of(name)
            stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(leave).remove)
        with torch.no_grad(), followed:
            run(model, example)
    if not any(seen.reads_input for seen in found.values()):
        raise ConfigError(
            'example: no weight layer of the model reads a tensor of it. Expected a tensor, a tuple of arguments, a '
            'dict of keyword arguments, or a function that runs the model it is given'
        )
    return found


def macs_of(layer: nn.Module, args: tuple, output: Any) -> Optional[int]:
    """Multiplications of the weight of a convolution or linear layer in one call; None for other layers.

    >>> macs_of(nn.Conv2d(8, 4, 3, groups=2), (torch.zeros(1, 8, 5, 5),), torch.zeros(1, 4, 3, 3))
    1296
    """
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        positions = args[0] if args else None
    elif isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
        positions = output
    else:
        return None
    return positions.numel() * layer.weight[0].numel() if isinstance(positions, Tensor) else None


def run(model: nn.Module, example: Example) -> Any:
    """Run a model on an example."""
    if isinstance(example, Tensor):
        return model(example)
    if isinstance(example, tuple):
        return model(*example)
    if isinstance(example, Mapping):
        return model(**example)
    return example(model)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple, Mapping)):
        parts: Iterable = values.values() if isinstance(values, Mapping) else values
        for part in parts:
            yield from tensors_in(part)


def _with_bases(values: Any) -> Iterator[Tensor]:
    """All tensors, and those that they are views of: an image may be written into a part of another tensor."""
    for tensor in tensors_in(values):
        yield tensor
        if tensor._base is not None:
            yield tensor._base
