"""The quantizer of an activation: a running or learned threshold, around the pure functions of ``quant``."""

import math
from collections.abc import Sequence
from typing import Union

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, QuantizationError
from ...quant import (
    ActivationSpec,
    Encoded,
    clip_activation,
    encode_activation,
    encode_clipped,
    encode_learned,
    fake_quantize_activation,
    fake_quantize_learned,
    learned_range_scale,
    rule_of,
    step_of,
)
from ...quant.ranges.rule import POWERS
from .passes import in_backward
from .quantizer import Quantizer, keep_positive, recorded, refuse_symbolic
from .state import CLIP, FLOAT, QUANTIZE


class ActivationQuantizer(Quantizer):
    """Fake-quantizes the input of one layer with a running threshold.

    Each training iteration adds the statistics of its calls to ``pending``; :meth:`update` turns them into
    one step of the running threshold. The first call that is not all zero calibrates; at the end of its
    iteration :meth:`settle` replaces that range by the one of all calls and ranks.

    Buffers: ``threshold`` (scalar T; a learned one is a parameter of shape ``(1,)``); the flags ``signed`` and
    ``initialized``, as 0.0 or 1.0, which can be averaged.
    """

    def __init__(self, spec: ActivationSpec, device=None) -> None:
        super().__init__(spec, [spec.bits])
        self._fresh = False
        self._signed = False
        self.observed = False
        threshold = torch.zeros((), device=device)
        if rule_of(spec).learned:
            self.threshold = nn.Parameter(threshold.reshape(1))  # FSDP2 takes no scalars
        else:
            self.register_buffer('threshold', threshold)
        self.register_buffer('signed', torch.tensor(float(spec.signed is True), device=device))
        self.register_buffer('initialized', torch.tensor(0.0, device=device))
        pending = torch.zeros(math.prod(rule_of(spec).shape) + 1, dtype=torch.float64, device=device)
        self.register_buffer('pending', pending, persistent=False)

    @property
    def mode(self) -> str:
        """What it does in the present stage."""
        return self.state.activation_mode()

    def forward(self, x: Tensor, encode: bool = False) -> Union[Tensor, Encoded]:
        """Return the fake-quantized (or clipped) input, shape and dtype of ``x``.

        Args:
            x: any shape.
            encode: return an operand for :mod:`mmgdrq.quant.operators` instead.
        """
        refuse_symbolic(x)
        mode = self.mode
        if mode == FLOAT or x.numel() == 0:
            return self._idle(x)
        if not self.rule.learned or self.is_fresh():  # a learned range that is there needs no statistics
            self._check_inside()
        observing = self._is_observing()
        by_product = self.rule.by_product is not None  # the statistic is one of quantizing
        at_once = by_product and encode and observing and not self.is_fresh() and mode == QUANTIZE
        if observing and not at_once:
            self.observe(x)
        if not self.is_ready():
            return self._idle(self._without_range(x))
        keep_positive([self])
        threshold, signed = self._range()
        if mode == CLIP:
            clip = encode_clipped if encode else clip_activation
            return clip(self._idle(x), threshold.detach(), signed)
        levels, limits = self.spec.levels(signed), self.spec.code_limits(signed)
        if self.rule.learned and (torch.is_grad_enabled() or not encode):
            step = step_of(recorded(threshold), levels)
            scale = learned_range_scale(x.numel(), limits, levels)
            if encode:
                return encode_learned(x, step, limits, scale, 'input', kernels=self.kernels)
            return fake_quantize_learned(x, step, limits, scale, kernels=self.kernels)
        if encode:
            return self._encode(x, threshold.detach(), levels, limits, torch.is_grad_enabled(), at_once)
        return fake_quantize_activation(x, threshold, levels, limits, self.kernels)

    def _check_inside(self) -> None:
        """Refuse to train outside of the forward pass of the model, which sets the ranges and counts iterations."""
        outside = self.training and self.state.managed and not self.state.passes.running and not self.state.frozen
        if outside and torch.is_grad_enabled() and not torch.compiler.is_compiling() and not in_backward():
            raise QuantizationError(
                f'{self.layer_name or "a quantized layer"}: it is trained outside of the forward pass of its quantized '
                'model, which sets the ranges. Call the model itself, model(...), not model.loss(...) or a part of it. '
                'A copied part of a model and a copied torch.fx.GraphModule have lost that forward pass: copy the '
                'whole model, and quantize a GraphModule after it is copied'
            )

    def _range(self) -> tuple[Tensor, bool]:
        """Threshold and sign; in a recomputation by the backward pass those of its forward pass."""
        if self.rule.learned:  # only an optimizer moves it
            return self.threshold.reshape(()), self._signed
        kept = self.state.passes.kept(self)
        return (self.threshold, self._signed) if kept is None else kept

    @torch.no_grad()
    def _encode(
        self, x: Tensor, threshold: Tensor, levels: int, limits: tuple[int, int], keep: bool, observing: bool
    ) -> Encoded:
        statistic = torch.empty(2, dtype=torch.float64, device=x.device) if observing else None
        options = statistic, self.rule.by_product == POWERS, self.kernels
        encoded = encode_activation(x, threshold, levels, limits, 'input', keep, x.requires_grad, *options)
        if statistic is not None:
            self._add(self.rule.of_by_product(statistic, x.numel()))
        return encoded

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Add the statistics of one call; the very first one sets the threshold at once."""
        ready = self.is_ready()
        if ready and not self._fresh and self.rule.learned:
            return
        if not ready:
            self._calibrate(x)
            if not self.is_ready():
                return
            self._fresh = True
        if self._fresh:
            self.pending[-1].add_((x.amin() < 0).double())
        self._add(self.rule.collect(x.detach(), self.spec, self._signed))

    def _add(self, statistic: Tensor) -> None:
        total = self.statistic
        self.rule.combine(total, statistic, out=total)
        self.observed = True
        if not self.state.managed:
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Turn the pending statistics into one step of the running threshold."""
        step_thresholds([self])

    def settle(self, empty: bool, negative: bool) -> None:
        """Take the first range from the statistics of all calls of the iteration, and of the other ranks.

        Also for a rank that has seen no elements yet.

        Args:
            empty: whether no rank has seen elements.
            negative: whether there were negative ones.
        """
        self.observed = False
        if empty:
            return
        signed = negative if self.spec.signed == 'auto' else bool(self.spec.signed)
        threshold = self.rule.range_of(self.statistic, self.spec, signed).high
        if not bool(torch.isfinite(threshold)):  # a later call of the first iteration, or another rank
            raise self._not_finite()
        if self._ready:
            self.state.passes.keep(self, (self.threshold.detach().clone(), self._signed))
        self.set_range(threshold, signed)
        self.pending.zero_()
        self._fresh = False

    @property
    def statistic(self) -> Tensor:
        """A view of what :attr:`pending` holds besides the calls with negative elements."""
        return self.pending[:-1].view(self.rule.shape)

    def alike(self) -> tuple:
        """Equal for quantizers whose thresholds follow the same rule on the same device."""
        return self.spec, self._signed, self.threshold.device

    def is_fresh(self) -> bool:
        """Whether the first range is not final yet, or there is none; asks the device for nothing."""
        return self._fresh or not self._ready

    def is_ready(self) -> bool:
        """Whether there is a range; asks the device only until there is one."""
        if not self._ready:
            initialized, signed = torch.stack([self.initialized, self.signed]).tolist()
            self.read_flags(initialized, signed, 0.0)
        return self._ready

    def flags(self) -> list[Tensor]:
        """Also the sign, and whether elements have been seen since the last step of the threshold."""
        return [self.initialized, self.signed, self.rule.is_empty(self.statistic).logical_not()]

    @torch.no_grad()
    def read_flags(self, initialized: float, signed: float, seen: float) -> None:
        """Take over what :meth:`flags` holds now.

        In an average of models some of which had no range yet, the flags are shares, and the threshold is too small by
        the same share.
        """
        if 0 < initialized < 1:
            self.threshold.data.div_(initialized)
            signed = float(signed > initialized / 2)
            self.signed.fill_(signed)
            self.initialized.fill_(1.0)
        self._ready, self._signed = initialized > 0, signed > 0.5
        self.observed = self.observed or seen > 0

    def _is_observing(self) -> bool:
        # In a managed model the root decides: a frozen backbone stage is in eval mode while the model
        # trains (frozen_stages of OpenMMLab), and needs ranges as well.
        return self.state.passes.collecting if self.state.managed else self.training and not self.state.frozen

    def _calibrate(self, x: Tensor) -> None:
        lowest, highest = x.aminmax()
        if not bool(torch.isfinite(lowest) & torch.isfinite(highest)):
            raise self._not_finite()
        if bool(highest == 0) and bool(lowest == 0):
            return
        signed = self.spec.signed
        signed = bool(lowest < 0) if signed == 'auto' else signed
        statistic = self.rule.collect(x.detach(), self.spec, signed)
        self.set_range(self.rule.range_of(statistic, self.spec, signed).high, signed)

    def _not_finite(self) -> QuantizationError:
        return QuantizationError(
            f'{self.layer_name or "a quantized layer"}: its first input is not finite, so it has no '
            'range. Check the data, the learning rate and the layers before it'
        )

    def set_range(self, threshold: Tensor, signed: bool) -> None:
        """Set the threshold (a scalar) and the sign of the grid; both count as initialized."""
        self.threshold.data.copy_(threshold)
        self.signed.fill_(signed)
        self.initialized.fill_(True)
        self._ready, self._signed = True, signed

    def _without_range(self, x: Tensor) -> Tensor:
        if self._is_observing() or (self.training and not bool((x != 0).any())):
            return x  # nothing but zeros so far
        layer = self.layer_name or 'a quantized layer'
        if self.state.frozen and (self.state.passes.training or self.training):
            raise QuantizationError(
                f'{layer}: the activation ranges are frozen, but it has none, so it would be trained in float. Let '
                'freeze begin later, after some iterations of reshape or quantize, or start from a checkpoint of the '
                'quantized model'
            )
        if self.training:
            raise QuantizationError(
                f'{layer}: it has no activation range and is trained outside of the forward pass of the quantized '
                'model, which sets the ranges. Call the model itself, model(...), not model.loss(...) or a part of it'
            )
        raise QuantizationError(
            f'{layer}: its activation range was never set, so the quantized model cannot be evaluated. Train at least '
            'one iteration, or load a checkpoint of the quantized model (this one looks like a float checkpoint). '
            'Registered layers in a frozen part of a model that trains need ScaleClipHook or GDRQHook'
        )

    def _start(self) -> None:
        super()._start()
        self.signed.fill_(float(self.spec.signed is True))
        self._fresh = self._signed = self.observed = False

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        self.is_ready()
        self.observed = True  # an averaged copy got its pending statistics as a buffer
        self.update()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self._check_sign(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._ready = self._fresh = self.observed = False
        self.pending.zero_()
        self.is_ready()

    def _check_sign(self, state_dict, prefix: str) -> None:
        saved, signed = state_dict.get(f'{prefix}signed'), self.spec.signed
        if saved is None or signed == 'auto' or not bool(state_dict.get(f'{prefix}initialized', False)):
            return
        if bool(saved) != signed:
            raise CheckpointError(
                f'{prefix[:-1]}: the checkpoint was trained with signed={bool(saved)}, the config asks for '
                f"signed={signed}. Use signed='auto' or {bool(saved)}, or start from its float weights"
            )

    @staticmethod
    def describe(layout: Tensor) -> str:
        return f'bits={layout.tolist()[0]:.0f}'


@torch.no_grad()
def settle_first_ranges(quantizers: Sequence[ActivationQuantizer]) -> None:
    """:meth:`ActivationQuantizer.settle` of those that have seen their first elements; the device is asked once."""
    fresh = [quantizer for quantizer in quantizers if quantizer.observed and quantizer.is_fresh()]
    if not fresh:
        return
    device = fresh[0].pending.device
    flags = [torch.stack([q.rule.is_empty(q.statistic), q.pending[-1] > 0]).to(device) for q in fresh]
    for quantizer, (empty, negative) in zip(fresh, torch.stack(flags).tolist()):
        quantizer.settle(empty, negative)


@torch.no_grad()
def step_thresholds(quantizers: Sequence[ActivationQuantizer]) -> None:
    """One step of the running thresholds that have seen something since their last one, all at once.

    A statistic without elements, or one that is not finite, leaves its threshold as it is.
    """
    settle_first_ranges(quantizers)
    groups: dict[tuple, list[ActivationQuantizer]] = {}
    for quantizer in quantizers:
        if quantizer.observed:
            groups.setdefault(quantizer.alike(), []).append(quantizer)
    for group in groups.values():
        _step_alike(group)


def _step_alike(quantizers: list[ActivationQuantizer]) -> None:
    spec, signed, _ = quantizers[0].alike()
    new = rule_of(spec).range_of(torch.stack([q.statistic for q in quantizers]), spec, signed).high
    old = torch.stack([q.threshold.reshape(()) for q in quantizers])
    steps = torch.where(torch.isfinite(new), (new - old) * spec.momentum, 0.0)
    for quantizer, before, step in zip(quantizers, old.unbind(), steps.unbind()):
        quantizer.state.passes.keep(quantizer, (before, signed))
        quantizer.threshold.add_(step)
        quantizer.pending.zero_()
        quantizer.observed = False
