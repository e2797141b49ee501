"""The quantizer of a weight: ranges as buffers or parameters, around the pure functions of ``quant``."""

from typing import Union

import torch
from torch import Tensor, nn

from ...quant import (
    Encoded,
    WeightSpec,
    encode_learned,
    encode_weight,
    encode_weight_by_rule,
    fake_quantize_learned,
    fake_quantize_weight,
    learned_range_scale,
    num_groups,
    rule_of,
    weight_step,
)
from ...quant.specs import GRIDS
from .cache import WeightCache
from .passes import in_backward
from .quantizer import Quantizer, keep_positive, recorded
from .state import FLOAT


class WeightQuantizer(Quantizer):
    """Fake-quantizes the weight of one layer, with one range per group of filters.

    Ranges such as ``'mean'`` follow the weight in every forward pass and have no state. A rule that improves its
    range, such as ``'search'``, keeps a buffer ``alpha`` of shape ``(G,)``, renewed once a training iteration (or
    call, without one); a learned range is a parameter ``alpha``, which starts from a search.

    Args:
        spec: what to quantize to.
        weight: the layer's weight, shape ``(O, ...)``.
    """

    def __init__(self, spec: WeightSpec, weight: Tensor) -> None:
        k = spec.multiplier if rule_of(spec).uses_k else 0.0
        super().__init__(spec, [spec.bits, spec.group_size, GRIDS.index(spec.effective_grid), k])
        self.cache = WeightCache()
        self.stateful = self.rule.keeps_range
        if not self.stateful:
            return
        alpha = torch.zeros(num_groups(weight.shape[0], spec.group_size), device=weight.device)
        if self.rule.learned:
            self.alpha = nn.Parameter(alpha)
        else:
            self.register_buffer('alpha', alpha)
        self.register_buffer('initialized', torch.tensor(0.0, device=weight.device))

    @property
    def mode(self) -> str:
        """What it does in the present stage."""
        return self.state.weight_mode()

    def forward(self, weight: Tensor, encode: bool = False) -> Union[Tensor, Encoded]:
        """Return the fake-quantized weight, shape and dtype of ``weight``.

        Args:
            weight: shape ``(O, ...)``.
            encode: return an operand for :mod:`mmgdrq.quant.operators` instead.
        """
        if self.mode == FLOAT:
            return self._idle(weight)
        if self.rule.improves and self.training and not self.state.managed:
            self.renew(weight.detach())  # a layer of its own: every call is an iteration
        if encode and self.rule.learned:
            step, limits, scale = self._learned_grid(weight)
            return encode_learned(weight, step, limits, scale, 'weight', self.spec.offset, self.kernels)
        if encode:
            with torch.no_grad():
                return self.cache.operand(weight, self._encode) if self._keeps_codes() else self._encode(weight)
        if not self.training and not torch.is_grad_enabled():
            return self.cache.values(self._fake_quantize, weight, *([self.alpha] if self.stateful else []))
        return self._fake_quantize(weight)

    def _keeps_codes(self) -> bool:
        # for an iteration of a managed model, which clears the cache before it, and for its backward pass
        passes = self.state.passes
        within = self.training and self.state.managed and (bool(passes.running) or in_backward())
        return within and passes.kept(self) is None

    def _encode(self, weight: Tensor) -> Encoded:
        if not self.stateful:
            return encode_weight_by_rule(weight, self.spec, 'weight', self.kernels)
        step = weight_step(weight, self.range_of(weight), self.spec)
        return encode_weight(weight, step, self.spec.code_limits, 'weight', self.spec.offset, self.kernels)

    def _fake_quantize(self, weight: Tensor) -> Tensor:
        if self.rule.learned:
            return fake_quantize_learned(weight, *self._learned_grid(weight), self.spec.offset, self.kernels)
        step = weight_step(weight, self.range_of(weight), self.spec)
        return fake_quantize_weight(weight, step, self.spec.code_limits, self.spec.offset, self.kernels)

    def _learned_grid(self, weight: Tensor) -> tuple[Tensor, tuple[int, int], float]:
        """Steps, limits of the codes, and the factor on the gradient of the steps."""
        step = weight_step(weight, self.range_of(weight), self.spec)
        # the filters of a group share one step, so its gradient counts the elements of all of them
        shared = weight.numel() / self.alpha.numel()
        return step, self.spec.code_limits, learned_range_scale(shared, self.spec.code_limits, self.spec.levels)

    def range_of(self, weight: Tensor) -> Tensor:
        """Range alpha of every group, shape ``(G,)``; where a backward pass computes again, that of then."""
        if not self.stateful:
            return self.rule.of_weight(weight, self.spec)
        kept = self.state.passes.kept(self)
        if kept is not None:
            return kept
        if not self.is_ready():
            self.renew(weight)
        keep_positive([self])
        return recorded(self.alpha)

    def is_ready(self) -> bool:
        """Whether a searched or learned range has its first value."""
        if not self._ready:
            self.read_flags(float(self.initialized))
        return self._ready

    @torch.no_grad()
    def read_flags(self, initialized: float) -> None:
        """Take over what the buffer ``initialized`` holds now; a share in an average, as that of an activation."""
        if 0 < initialized < 1:
            self.alpha.data.div_(initialized)
            self.initialized.fill_(1.0)
        self._ready = initialized > 0

    @torch.no_grad()
    def renew(self, weight: Tensor) -> None:
        """Fit the range to the present weight: a search the first time, then the best of three nearby."""
        if self.rule.improves and self.is_ready():
            self.state.passes.keep(self, self.alpha.clone())
            alpha = self.rule.improve(weight, self.alpha, self.spec)
        else:
            alpha = self.rule.of_weight(weight, self.spec)
        self.alpha.copy_(alpha)
        self.initialized.fill_(True)
        self._ready = True
        self.cache.clear()

    def train(self, mode: bool = True) -> 'WeightQuantizer':
        """Switch the mode; what was kept of the weight is forgotten."""
        self.cache.clear()
        return super().train(mode)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._ready = False
        self.cache.clear()

    @staticmethod
    def describe(layout: Tensor) -> str:
        bits, group_size, grid, k = layout.tolist()
        text = f'bits={bits:.0f}, group_size={group_size:.0f}, grid={GRIDS[int(grid)]!r}'
        return f'{text}, k={k:g}' if k else text
