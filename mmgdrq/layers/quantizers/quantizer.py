"""What the quantizers of weights and of activations share: the state, the format, and a range as a parameter."""

import itertools
from collections.abc import Iterable
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ...errors import CheckpointError, QuantizationError
from ...quant import RangeRule, keep_in_graph, rule_of
from .state import ModelState

LEARNED_FLOOR = 1e-8
"""Smallest learned range; below the floor of a step it would get no gradient any more."""


class Quantizer(nn.Module):
    """Shared part: the state, and a ``format`` buffer by which a checkpoint is checked against the config.

    Attributes:
        state: of the model, or of the layer where that stands alone.
        kernels: whether kernels may be used.
    """

    kernels = True

    def __init__(self, spec, layout) -> None:
        super().__init__()
        self.spec = spec
        self.state = ModelState()
        self.layer_name = ''
        self._held: Optional[Tensor] = None
        self._ready = False
        self._layout = torch.tensor(layout, dtype=torch.float32)
        self.register_buffer('format', self._layout.clone())

    def _apply(self, fn, *args, **kwargs) -> 'Quantizer':
        was_meta = self.format.is_meta
        super()._apply(fn, *args, **kwargs)
        if was_meta and not self.format.is_meta:  # to_empty() gives whatever lies in memory
            self._start()
        return self

    @torch.no_grad()
    def _start(self) -> None:
        """Put all tensors to what they are before training."""
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.zero_()
        self.format.copy_(self._layout)
        self._held, self._ready = None, False
        self.state.emptied = True

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        saved = state_dict.get(prefix + 'format')
        if saved is not None and not _same_format(saved.cpu(), self.format.cpu()):
            raise CheckpointError(
                f'{prefix[:-1]}: the checkpoint was quantized with {self.describe(saved)}, the config asks '
                f'for {self.describe(self.format)}. Use the config it was trained with, or start from '
                'its float weights'
            )
        fits = self._fit_shapes(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.format.copy_(self._layout)  # not what half precision has made of it
        self._held = None
        if not fits:
            self.forget()  # the flag of another range has been loaded
            args[-1].append(f'{prefix[:-1]}: its range starts anew')

    def _fit_shapes(self, state_dict: dict[str, Any], prefix: str) -> bool:
        """Reshape single numbers, which older versions saved without a dimension; whether all tensors fit."""
        fits = True
        for name, tensor in (*self._parameters.items(), *self._buffers.items()):
            saved = state_dict.get(prefix + name)
            if saved is None or tensor is None or saved.shape == tensor.shape:
                continue
            if saved.numel() == tensor.numel() == 1:
                state_dict[prefix + name] = saved.reshape(tensor.shape)
            else:
                fits = False
        return fits

    @property
    def rule(self) -> RangeRule:
        """How the range is chosen."""
        return rule_of(self.spec, self.kernels)

    def learned(self) -> Optional[nn.Parameter]:
        """The range as a parameter, where it is one."""
        return next(iter(self._parameters.values()), None)

    def hold(self, frozen: bool) -> None:
        """While frozen, a learned range keeps its value, whatever momentum or weight decay do to it."""
        learned = self.learned()
        if learned is None:
            return
        if not frozen:
            self._held = None
        elif self._held is None:
            self._held = learned.detach().clone()
        else:
            learned.data.copy_(self._held)

    def _idle(self, tensor: Tensor) -> Tensor:
        """``tensor``, for a call that does not use a learned range."""
        learned = self.learned()
        return tensor if learned is None or not torch.is_grad_enabled() else keep_in_graph(tensor, learned)

    def _save_to_state_dict(self, *args) -> None:
        self.hold(self._held is not None)
        keep_positive([self])
        super()._save_to_state_dict(*args)

    def flags(self) -> list[Tensor]:
        """What :meth:`read_flags` takes, as scalars on the device."""
        return [self.initialized]

    def forget(self) -> None:
        """Start the range anew: it was one of other weights."""
        if 'initialized' in self._buffers:
            self.initialized.fill_(0.0)
        self._ready = False

    def extra_repr(self) -> str:
        return f'{self.describe(self.format)}, range={self.spec.range}'


def recorded(learned: Tensor) -> Tensor:
    """A learned range; a trace holds its mirror image where it is negative, in place of :func:`keep_positive`."""
    return learned.abs() if torch.jit.is_tracing() else learned


def refuse_symbolic(x: object) -> None:
    """Refuse the symbolic tracing of a quantized layer, whose values decide what it does.

    Raises:
        QuantizationError: says what to do.
    """
    if isinstance(x, Proxy):
        raise QuantizationError(
            'torch.fx traces a quantized layer, which does not work (create_feature_extractor of torchvision does so). '
            'Trace the float model, then quantize the torch.fx.GraphModule'
        )


@torch.no_grad()
def keep_positive(quantizers: Iterable[Quantizer]) -> None:
    """Learned ranges that an optimizer step took below zero go on from their mirror images."""
    learned = [q.learned() for q in quantizers if q._ready]
    ranges = [parameter.data for parameter in learned if parameter is not None]
    if ranges and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        torch._foreach_abs_(ranges)
        torch._foreach_clamp_min_(ranges, LEARNED_FLOOR)


def read_flags(quantizers: Iterable[Quantizer]) -> None:
    """Bring what quantizers remember of their flags up to their buffers; the device is asked once."""
    flagged = [quantizer for quantizer in quantizers if 'initialized' in quantizer._buffers]
    if not flagged:
        return
    flags = [q.flags() for q in flagged]
    device = flagged[0].initialized.device
    values = iter(torch.stack([flag.to(device, torch.float64) for several in flags for flag in several]).tolist())
    for quantizer, several in zip(flagged, flags):
        quantizer.read_flags(*itertools.islice(values, len(several)))


def _same_format(saved: Tensor, expected: Tensor) -> bool:
    """Equal in the lower of both precisions: a model in half precision rounds its multiplier."""
    dtypes = [tensor.dtype for tensor in (saved, expected) if tensor.is_floating_point()]
    lower = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    return torch.equal(saved.to(lower), expected.to(lower))
