"""What a range rule is: how the range of a weight, or of the inputs of many calls and ranks, is chosen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Optional, TypeVar, Union

import torch
from torch import Tensor

from ...errors import ConfigError
from ..specs import ActivationSpec, WeightSpec
from . import registry

SUM, MAX = 'sum', 'max'
"""How statistics of calls and of ranks combine."""

MAGNITUDES, POWERS = 'magnitudes', 'powers'
"""Statistics that quantizing an input gives along the way: those of ``sum_and_count`` and of ``power_sums``."""


@dataclass(frozen=True)
class Range:
    """What a grid covers.

    Attributes:
        low, high: lowest and highest value, float32, of any shape; NaN where the statistic holds no elements.
        axis: dimension of the tensor that they belong to, one value for each entry; None: one value for all.
    """

    low: Tensor
    high: Tensor
    axis: Optional[int] = None

    @classmethod
    def up_to(cls, threshold: Tensor, signed: bool) -> 'Range':
        """From 0, or from ``-threshold``, to ``threshold``."""
        high = threshold.float()
        return cls(-high if signed else torch.zeros_like(high), high)


class RangeRule:
    """A way to choose a range; a subclass overrides what it needs, and :func:`register_range_rule` gives it a name.

    For weights it overrides :meth:`of_weight`, for inputs :meth:`collect` and :meth:`range_of`. Statistics of the calls
    of an iteration and of all ranks are combined as ``reduction`` says, before they become a range.

    Attributes:
        learned: whether the range is a parameter, which the rule only gives its first value.
        improves: whether the range of a weight is kept, and improved once a training iteration.
        uses_k: whether ``k`` of the spec has a part in the range.
        shape: of the statistic of inputs.
        reduction: ``SUM`` or ``MAX``.
        by_product: statistic that quantizing an input gives along the way; None: :meth:`collect` looks at the input.
        is_mean: whether the range of a weight is ``k * mean|W_g|``, which quantizing a weight gives along the way.
        affine: whether a calibration gets the two ends of an affine grid from it.
        by_histogram: whether that takes :meth:`ends` of a histogram, and not the lowest and highest value alone.
        kernels: whether kernels may be used, which the execution of a model decides.
    """

    learned: ClassVar[bool] = False
    improves: ClassVar[bool] = False
    uses_k: ClassVar[bool] = False
    shape: ClassVar[tuple[int, ...]] = (2,)
    reduction: ClassVar[str] = SUM
    by_product: ClassVar[Optional[str]] = None
    is_mean: ClassVar[bool] = False
    affine: ClassVar[bool] = False
    by_histogram: ClassVar[bool] = False

    def __init__(self, kernels: bool = True) -> None:
        self.kernels = kernels

    @property
    def weights(self) -> bool:
        """Whether it is a rule for weights."""
        return type(self).of_weight is not RangeRule.of_weight

    @property
    def inputs(self) -> bool:
        """Whether it is a rule for inputs."""
        return type(self).collect is not RangeRule.collect

    @property
    def keeps_range(self) -> bool:
        """Whether the range of a weight is state of its layer."""
        return self.learned or self.improves

    def default_k(self, bits: int, signed: bool) -> float:
        """``k`` for inputs, where the spec has none."""
        return 1.0

    def of_weight(self, weight: Tensor, spec: WeightSpec) -> Tensor:
        """Range alpha of every group.

        Args:
            weight: shape ``(O, ...)``.
            spec: its spec.

        Returns:
            float32, shape ``(G,)``, see :mod:`mmgdrq.quant.groups`; 0 for a group of zeros.
        """
        raise NotImplementedError

    def improve(self, weight: Tensor, alpha: Tensor, spec: WeightSpec) -> Tensor:
        """A range at least as good as ``alpha``, which suited the weight an iteration ago; for ``improves``.

        Args:
            weight: shape ``(O, ...)``.
            alpha: shape ``(G,)``.
            spec: its spec.
        """
        raise NotImplementedError

    def collect(self, x: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
        """Statistic of one call; it must not ask a device for a value.

        Args:
            x: any non-empty shape, without a gradient.
            spec: its spec.
            signed: whether the grid is signed; only a guess while there is no range.

        Returns:
            float64, of ``shape``. One that is not finite leaves the range as it is.
        """
        raise NotImplementedError

    def of_by_product(self, sums: Tensor, elements: int) -> Tensor:
        """The statistic from ``by_product``, float64 of shape ``(2,)``, of a call with so many elements."""
        return sums

    def combine(self, one: Tensor, other: Tensor, out: Optional[Tensor] = None) -> Tensor:
        """Statistic of the elements of both."""
        return torch.maximum(one, other, out=out) if self.reduction == MAX else torch.add(one, other, out=out)

    def is_empty(self, statistic: Tensor) -> Tensor:
        """Whether a statistic of shape ``(..., *shape)`` holds no elements, bool of shape ``(...)``."""
        return statistic[..., -1] == 0

    def range_of(self, statistic: Tensor, spec: ActivationSpec, signed: bool) -> Range:
        """Range of combined statistics; NaN where there are no elements.

        Args:
            statistic: shape ``(..., *shape)``, of several layers at once.
            spec: their spec.
            signed: whether the grid is signed.
        """
        raise NotImplementedError

    def ends(self, counts: Tensor, spec: ActivationSpec, bins: Any) -> Range:
        """Ends of an affine grid, for ``by_histogram``.

        Args:
            counts: histograms of :mod:`~mmgdrq.quant.ranges.histogram`, shape ``(..., 2 * bins.half)``.
            spec: their spec.
            bins: their :class:`~mmgdrq.quant.ranges.histogram.Bins`.
        """
        raise NotImplementedError


Rule = TypeVar('Rule', bound=type)


def register_range_rule(name: str) -> Callable[[Rule], Rule]:
    """Register a subclass of :class:`RangeRule`, so that ``range=name`` chooses it; a decorator of the class.

    Raises:
        ConfigError: another class has that name, or it is no range rule.
    """

    def decorate(cls: Rule) -> Rule:
        if not (isinstance(cls, type) and issubclass(cls, RangeRule)):
            raise ConfigError(
                f"register_range_rule: '{name}' is {cls!r}. Expected a subclass of mmgdrq.quant.RangeRule"
            )
        registry.add(name, cls(), cls(kernels=False))
        return cls

    return decorate


def rule_of(spec: Union[WeightSpec, ActivationSpec], kernels: bool = True) -> RangeRule:
    """The rule that ``spec`` names, which uses kernels or does without."""
    return registry.find(spec.range, kernels)


def weight_range(weight: Tensor, spec: WeightSpec, kernels: bool = True) -> Tensor:
    """Range alpha of every group by the rule of ``spec``; a learned one starts there.

    Args:
        weight: shape ``(O, ...)``.
        kernels: whether kernels may be used.

    Returns:
        float32, shape ``(G,)``.
    """
    return rule_of(spec, kernels).of_weight(weight, spec)


def collect(x: Tensor, spec: ActivationSpec, signed: bool, kernels: bool = True) -> Tensor:
    """Statistic of one call by the rule of ``spec``, float64.

    Args:
        x: any non-empty shape.
        kernels: whether kernels may be used.
    """
    return rule_of(spec, kernels).collect(x.detach(), spec, signed)


def add_statistic_(sum_: Tensor, statistic: Tensor, spec: ActivationSpec) -> None:
    """Add a statistic of :func:`collect` to those before it, in place."""
    rule_of(spec).combine(sum_, statistic, out=sum_)


def threshold_of(statistic: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
    """Threshold T of a statistic of :func:`collect`, float32 scalar; NaN where it holds no elements."""
    return rule_of(spec).range_of(statistic, spec, signed).high
