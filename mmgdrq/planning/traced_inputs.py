"""Find the layers that read a model's input, by following it through one forward pass."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Union

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ConfigError
from ..layers.walk import all_modules

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


def layers_that_read_the_input(model: nn.Module, example: Example, layers: Mapping[str, nn.Module]) -> dict[str, bool]:
    """Run the model once, in evaluation mode, and see what its weight layers read.

    Args:
        model: it is not changed.
        example: an input.
        layers: name -> layer, all weight layers of the model.

    Returns:
        Name -> whether it reads the input, in the order in which the layers are called.

    Raises:
        ConfigError: no layer reads a tensor of the example.
    """
    followed, found = _Followed(), dict[str, bool]()

    def enter(name: str):
        def hook(layer, args, kwargs):
            found[name] = found.get(name, False) or followed.any_of((args, kwargs))

        return hook

    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        stack.callback(
            model.register_forward_pre_hook(
                lambda module, args, kwargs: followed.add((args, kwargs)), with_kwargs=True, prepend=True
            ).remove
        )
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(lambda module, args, out: followed.drop(out)).remove)
        with torch.no_grad(), followed:
            run(model, example)
    if not any(found.values()):
        raise ConfigError(
            'example: no weight layer of the model reads a tensor of it. Expected a tensor, a tuple of arguments, a '
            'dict of keyword arguments, or a function that runs the model it is given'
        )
    return found


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


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in all_modules(model)]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
