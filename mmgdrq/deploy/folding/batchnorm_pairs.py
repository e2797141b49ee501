"""Which batch normalization follows which quantized layer, so that it can carry the layer's scale."""

from collections.abc import Mapping
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ...layers import is_quantized
from ...layers.walk import all_modules

Pairs = dict[str, str]
"""Name of a quantized layer -> name of the BN that follows it."""

BLOCKS = ('BasicBlock', 'Bottleneck', 'ResNet', 'ResNetV1d', 'ResNetV1c')
"""ResNet classes of OpenMMLab and torchvision, whose ``convN`` is always followed by ``bnN``."""

PACKAGES = ('mmdet', 'mmseg', 'mmpretrain', 'torchvision', 'mmcv', 'mmgdrq')


def pairs_by_trace(model: nn.Module, run: Callable[[], object]) -> Pairs:
    """Find the pairs in real forward passes.

    A pair is certain where, in all calls, the layer's output went into that BN and nothing else, and the BN
    got its input from that layer only. All other layers keep their scale themselves, as do those before a BN without
    running statistics.

    Args:
        model: a quantized model.
        run: runs ``model`` in eval mode on real inputs, once or several times.
    """
    trace = _Trace(model)
    with torch.no_grad(), trace:
        trace.leaves(run())
    return trace.pairs()


def pairs_by_structure(model: nn.Module) -> Pairs:
    """Find the pairs that the code of the containing module guarantees, without running the model.

    These are a 2D convolution and its neighbour in ``nn.Sequential``, mmcv's ``ConvModule`` in the order conv-norm,
    and the blocks of ResNet. A Sequential counts where nothing else can read its layers one by one: as the model
    itself, in another one that counts, or in the blocks of ResNet. Layers that have several names are left out.
    """
    pairs: Pairs = {}
    for prefix, parent in model.named_modules():
        if type(parent) is nn.Sequential and not _is_called_as_a_whole(model, prefix):
            continue
        for layer, norm in _guaranteed(parent):
            name, norm_name = (f'{prefix}.{n}' if prefix else n for n in (layer, norm))
            if _fit(parent._modules.get(layer), parent._modules.get(norm)):
                pairs[name] = norm_name
    shared = _names_of_shared(model)
    return {name: norm for name, norm in pairs.items() if not {name, norm} & shared}


def _is_called_as_a_whole(model: nn.Module, name: str) -> bool:
    """Whether the code around a Sequential is known to call it, and not its layers."""
    while name:
        name = name.rpartition('.')[0]
        parent = model.get_submodule(name)
        if type(parent).__name__ in BLOCKS and type(parent).__module__.split('.')[0] in PACKAGES:
            return True
        if type(parent) is not nn.Sequential:
            return False
    return True


def _guaranteed(parent: nn.Module) -> list[tuple[str, str]]:
    names = list(parent._modules)
    if type(parent) is nn.Sequential:
        return list(zip(names, names[1:]))
    kind, package = type(parent).__name__, type(parent).__module__.split('.')[0]
    if package not in PACKAGES:
        return []
    if kind == 'ConvModule':
        order = [step for step in parent.order if step in ('conv', 'norm')]
        norm = getattr(parent, 'norm_name', None)
        return [('conv', norm)] if order == ['conv', 'norm'] and norm else []
    if kind in BLOCKS:
        return [(f'conv{i}', f'bn{i}') for i in (1, 2, 3)]
    return []


def _fit(layer, norm) -> bool:
    """Whether the filters of a layer are the channels of a norm; those of a linear layer need not be."""
    planar = isinstance(layer, nn.Conv2d) and isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
    return planar and is_quantized(layer) and can_carry_scale(norm) and layer.weight.shape[0] == norm.num_features


FORWARD = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def can_carry_scale(norm) -> bool:
    """Whether a module computes torch's batch normalization and nothing else, with its own parameters.

    A BN without running statistics (``track_running_stats=False``) takes those of each batch; they carry nothing. A
    subclass may do more in its forward pass, or use the parameters otherwise.
    """
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return False
    plain = type(norm).forward in FORWARD and 'forward' not in vars(norm)
    own = all(name in norm._parameters for name in ('weight', 'bias'))  # not computed by a parametrization
    return plain and own and not foreign_hooks({**norm._forward_hooks, **norm._forward_pre_hooks})


def foreign_hooks(hooks: Mapping[int, Callable]) -> list[str]:
    """Names of the hooks that are not this package's own."""
    found = (getattr(hook, 'func', hook) for hook in hooks.values())
    names = ((getattr(hook, '__module__', None) or '', getattr(hook, '__qualname__', repr(hook))) for hook in found)
    return [f'{module}.{name}' for module, name in names if module.split('.')[0] != __name__.split('.')[0]]


def _names_of_shared(model: nn.Module) -> set[str]:
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return {name for group in names.values() if len(group) > 1 for name in group}


class _Trace(TorchFunctionMode):
    """Follows the output tensors of quantized layers to the calls that read them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = {id(module): name for name, module in reversed(list(model.named_modules()))}
        self.modules = [m for m in all_modules(model) if is_quantized(m) or isinstance(m, _BatchNorm)]
        self.producer: dict[int, str] = {}
        self.alive: list[Tensor] = []
        self.over_tokens: set[int] = set()
        self.readers: dict[str, set[str]] = {}
        self.sources: dict[str, set[str]] = {}
        self.handles: list = []
        self.inside = 0

    def __enter__(self):
        for module in self.modules:
            enter = self._enter_norm if isinstance(module, _BatchNorm) else self._enter_layer
            self.handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            self.handles.append(module.register_forward_hook(self._leave))
        if self.model not in self.modules:
            self.handles.append(self.model.register_forward_hook(lambda module, args, output: self.leaves(output)))
        return super().__enter__()

    def __exit__(self, *args):
        for handle in self.handles:
            handle.remove()
        return super().__exit__(*args)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.inside and not _is_metadata(result):
            for tensor in _tensors((args, kwargs)):
                if id(tensor) in self.producer:
                    self.readers[self.producer[id(tensor)]].add(f'call of {func}')
        return result

    def pairs(self) -> Pairs:
        """The certain pairs."""
        found = {}
        for name, readers in self.readers.items():
            norm = next(iter(readers)) if len(readers) == 1 else None
            if norm is None or self.sources.get(norm) != {name}:
                continue
            if can_carry_scale(self.model.get_submodule(norm)):
                found[name] = norm
        return found

    def leaves(self, output) -> None:
        """Note that ``output`` leaves the model."""
        self._read(output, 'the output of the model')

    def _enter_layer(self, module, args, kwargs) -> None:
        self._read((args, kwargs), f'layer {self.names[id(module)]}')
        self.inside += 1

    def _enter_norm(self, module, args, kwargs) -> None:
        norm = self.names[id(module)]
        sources = self._read((args, kwargs), norm) or {'something else'}
        if any(id(t) in self.over_tokens for t in _tensors((args, kwargs))):
            sources.add('a linear layer whose filters are not the channels of the BN')
        self.sources.setdefault(norm, set()).update(sources)
        self.inside += 1

    def _read(self, value, reader: str) -> set[str]:
        sources = {self.producer[id(t)] for t in _tensors(value) if id(t) in self.producer}
        for source in sources:
            self.readers[source].add(reader)
        return sources

    def _leave(self, module, args, output) -> None:
        self.inside -= 1
        if is_quantized(module):
            name = self.names[id(module)]
            self.readers.setdefault(name, set())
            self.producer[id(output)] = name
            self.alive.append(output)
            if isinstance(module, nn.Linear) and output.dim() != 2:
                self.over_tokens.add(id(output))  # BN normalizes dimension 1, the filters are in the last


def _tensors(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _is_metadata(result) -> bool:
    """Whether the result of a call is a shape, dtype, flag or the like, so that no values were read or written."""
    if isinstance(result, tuple):
        return all(isinstance(item, int) for item in result)
    return isinstance(result, (bool, int, str, torch.dtype, torch.device, torch.layout))
