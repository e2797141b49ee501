"""What a tensor is quantized to: frozen, validated specifications.

The default multipliers ``k`` grow with the bit-width. They are near the minimum of the quantized-loss
for a Gaussian tensor (``mmgdrq.quant.quantized_loss``); 2 bits use k = 2, whose fixed point is the
uniform distribution.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Optional, TypeVar, Union

from ..errors import ConfigError, unknown_key
from .ranges import registry

FLOAT_BITS = 32
"""The number of bits that means "leave this tensor in float"."""

ACTIVATION_GRIDS = ('symmetric', 'affine')

GRIDS = ('twos_complement', 'narrow_range', 'midrise')

MIDRISE_BITS = 7
"""Largest bit-width of a midrise grid: its integer weights reach 2^bits - 1, and have to fit int8."""

WEIGHT_K = {2: 2.0, 3: 2.5, 4: 3.0, 5: 4.0, 6: 5.0, 7: 6.5, 8: 8.0}
"""bits -> threshold in units of mean|W_g|."""

TERNARY_K = 1.5
"""The same for 2 bits with a narrow range, codes {-1, 0, 1}."""

UNIFORM_K = 2.0
"""A uniform distribution on [-T, T] has mean|W| = T / 2: the fixed point of Scale-Clip."""


@dataclass(frozen=True)
class WeightSpec:
    """How the weight of one layer is quantized.

    Attributes:
        bits: 2 to 8, or 32 for float.
        group_size: filters that share one range; -1 means all filters of the layer. The last group of a
            layer is smaller where the number of filters is not divisible.
        range: rule for the range alpha of a group: ``'mean'`` (k * mean|W_g|), ``'search'`` (argmin of the
            quantized-loss), ``'learned'`` (a parameter) or ``'minmax'`` (max|W_g|).
        k: multiplier of ``'mean'`` and of Scale-Clip; None takes the default of the bit-width.
        grid: ``'twos_complement'`` (values ``code * step``), ``'narrow_range'`` (without the lowest code, so
            symmetric) or ``'midrise'`` (``(code + 1/2) * step``: symmetric with all codes, but no zero; the integer
            weight is ``2 * code + 1``, which fits int8 up to 7 bits, so 8 bits are two's complement). None: midrise
            at 2 bits, where the two's complement grid {-2, -1, 0, 1} shifts the mean of a symmetric weight by
            -0.09 of its standard deviation and {-1, 0, 1} leaves a level unused; else two's complement.
        p: norm of the quantized-loss that ``'search'`` minimises, 1 or 2.

    >>> WeightSpec(bits=2).code_limits, WeightSpec(bits=2).offset
    ((-2, 1), 0.5)
    >>> WeightSpec(bits=2, grid='narrow_range').code_limits
    (-1, 1)
    >>> WeightSpec(bits=4).code_limits
    (-8, 7)
    """

    bits: int = 2
    group_size: int = 1
    range: str = 'mean'
    k: Optional[float] = None
    grid: Optional[str] = None
    p: int = 2

    def __post_init__(self) -> None:
        _check_bits('weight', self.bits)
        _check_int('weight', 'group_size', self.group_size)
        if self.group_size < 1 and self.group_size != -1:
            raise ConfigError(
                f'weight: group_size={self.group_size} is not possible. Expected 1 or more filters per group, '
                'or -1 for the whole layer'
            )
        _check_choice('weight', 'range', self.range, registry.names('weights'))
        _check_multiplier('weight', self.k)
        if self.grid is not None:
            _check_choice('weight', 'grid', self.grid, GRIDS)
        _check_choice('weight', 'p', self.p, (1, 2))

    @property
    def enabled(self) -> bool:
        """Whether the tensor is quantized at all."""
        return self.bits != FLOAT_BITS

    @property
    def effective_grid(self) -> str:
        """``grid``, or the default of the bit-width."""
        if self.bits > MIDRISE_BITS and self.grid == 'midrise':
            return 'twos_complement'
        return self.grid or ('midrise' if self.bits == 2 else 'twos_complement')

    @property
    def offset(self) -> float:
        """What is added to a code before it is multiplied with the step."""
        return 0.5 if self.effective_grid == 'midrise' else 0.0

    @property
    def code_limits(self) -> tuple[int, int]:
        """Lowest and highest integer code."""
        top = 2 ** (self.bits - 1)
        return (1 - top if self.effective_grid == 'narrow_range' else -top), top - 1

    @property
    def integers(self) -> tuple[int, int]:
        """Lowest integer weight, and the distance of two of them: codes are 2 * code + 1 on a midrise grid.

        >>> WeightSpec(bits=2).integers, WeightSpec(bits=4).integers
        ((-3, 2), (-8, 1))
        """
        top = 2 ** (self.bits - 1)
        return (1 - 2 * top, 2) if self.offset else (-top, 1)

    @property
    def levels(self) -> int:
        """Number of steps between 0 and alpha."""
        top = 2 ** (self.bits - 1)
        return top - 1 if self.effective_grid == 'narrow_range' else top

    @property
    def multiplier(self) -> float:
        """``k``, or the default of the grid."""
        if self.k is not None:
            return float(self.k)
        return TERNARY_K if self.code_limits == (-1, 1) else WEIGHT_K[self.bits]

    @property
    def k_belongs_to(self) -> tuple:
        """What the default of ``k`` depends on: a ``k`` that was given says nothing about other values of these."""
        return self.bits, self.effective_grid

    @property
    def clip_multiplier(self) -> float:
        """Multiplier of Scale-Clip: that of the range, but by default at least 2, whose fixed point is uniform."""
        return self.multiplier if self.k is not None else max(self.multiplier, UNIFORM_K)


@dataclass(frozen=True)
class ActivationSpec:
    """How the input of one layer is quantized.

    Attributes:
        bits: 2 to 8, or 32 for float.
        range: rule for the threshold T: ``'mean'`` (k * running mean|A|), ``'active_mean'`` (k * running mean
            of the non-zero |A|, which does not depend on how sparse a ReLU made A), ``'lehmer'`` (k * running
            sum|A|^3 / sum(A^2), the Lehmer mean of order 3, which does not depend on it either and grows with
            the tail), ``'search'``, ``'learned'``, ``'minmax'`` (running max|A|) or ``'percentile'``.
        k: multiplier of the three mean rules; None takes the default of the bit-width and sign.
        momentum: weight of the newest iteration in the running statistic, in (0, 1].
        signed: True, False, or ``'auto'``: decided by the first batch that is not all zero.
        p: norm of the quantized-loss that ``'search'`` minimises, 1 or 2.
        grid: ``'symmetric'`` (zero is the lowest code, or the middle one where ``signed``), or ``'affine'``: from the
            lowest to the highest value with zero as one of the codes, which suits what SiLU, GELU and leaky ReLU leave.
            Its range, by ``'minmax'`` or ``'percentile'``, comes from a calibration (:func:`mmgdrq.calibrate`) and
            stays while the weights train; ``signed`` asks for a zero point in the middle (True) or at 0 (False).
        per_channel: with ``'affine'``: the input of a depthwise convolution has a range for each channel, which costs
            nothing, as it becomes part of the scale of a filter.
        percentile: share of the elements in percent that lie below the highest, and above the lowest, value of
            ``'percentile'``.
    """

    bits: int = 4
    range: str = 'lehmer'
    k: Optional[float] = None
    momentum: float = 0.1
    signed: Union[str, bool] = 'auto'
    p: int = 2
    grid: str = 'symmetric'
    per_channel: bool = True
    percentile: float = 99.99

    def __post_init__(self) -> None:
        _check_bits('activation', self.bits)
        _check_choice('activation', 'range', self.range, registry.names('inputs'))
        _check_multiplier('activation', self.k)
        _check_number('activation', 'momentum', self.momentum)
        if not 0 < self.momentum <= 1:
            raise ConfigError(f'activation: momentum={self.momentum} is not in (0, 1]')
        if not isinstance(self.signed, bool) and self.signed != 'auto':
            raise ConfigError(f"activation: signed={self.signed!r} is unknown. Expected True, False or 'auto'")
        _check_choice('activation', 'p', self.p, (1, 2))
        _check_choice('activation', 'grid', self.grid, ACTIVATION_GRIDS)
        self._check_affine()

    def _check_affine(self) -> None:
        affine = registry.names('affine')
        if self.grid == 'affine' and self.range not in affine:
            raise ConfigError(
                f"activation: range={self.range!r} gives no lowest value for grid='affine'. Use one of "
                f'{", ".join(map(repr, affine))}'
            )
        if not isinstance(self.per_channel, bool):
            raise ConfigError(f'activation: per_channel={self.per_channel!r} is not True or False')
        _check_number('activation', 'percentile', self.percentile)
        if not 50 < self.percentile <= 100:
            raise ConfigError(f'activation: percentile={self.percentile} is not in (50, 100]')

    @property
    def enabled(self) -> bool:
        """Whether the tensor is quantized at all."""
        return self.bits != FLOAT_BITS

    @property
    def k_belongs_to(self) -> tuple:
        """What the default of ``k`` depends on: a ``k`` that was given says nothing about other values of these."""
        return self.bits, self.range, self.signed

    def code_limits(self, signed: bool) -> tuple[int, int]:
        """Lowest and highest integer code of the signed or unsigned grid.

        >>> ActivationSpec(bits=4).code_limits(signed=False)
        (0, 15)
        """
        if signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    def levels(self, signed: bool) -> int:
        """Number of steps between 0 and the threshold T."""
        return 2 ** (self.bits - 1) if signed else 2**self.bits - 1

    def multiplier(self, signed: bool) -> float:
        """``k``, or the default of the range rule, bit-width and sign."""
        if self.k is not None:
            return float(self.k)
        return registry.find(self.range).default_k(self.bits, signed)


Spec = Union[WeightSpec, ActivationSpec]
AnySpec = TypeVar('AnySpec', WeightSpec, ActivationSpec)


def make_spec(cls: type[AnySpec], config: Union[Mapping[str, Any], Spec, None], where: str) -> AnySpec:
    """Build a spec from a config dict; None gives the defaults, a spec is passed through.

    Args:
        cls: ``WeightSpec`` or ``ActivationSpec``.
        config: the config's dict.
        where: config key that error messages name.

    Raises:
        ConfigError: an unknown key or a value out of range.

    >>> make_spec(WeightSpec, dict(bits=4), 'weight').bits
    4
    """
    return override_spec(cls(), config, where)


def override_spec(spec: AnySpec, config: Union[Mapping[str, Any], Spec, None], where: str) -> AnySpec:
    """Return ``spec`` with the values of ``config`` in place of its own.

    Raises:
        ConfigError: an unknown key or a value out of range.
    """
    if config is None:
        return spec
    if isinstance(config, type(spec)):
        return config
    if not isinstance(config, Mapping):
        raise ConfigError(f'{where}: expected a dict such as dict(bits=4), got {config!r}')
    valid = [f.name for f in fields(spec)]
    for key in config:
        if key not in valid:
            raise unknown_key(where, key, valid)
    try:
        return type(spec)(**{**asdict(spec), **config})
    except ConfigError as error:
        raise ConfigError(f'{where}: {str(error).split(": ", 1)[1]}') from None


def _check_bits(where: str, bits: Any) -> None:
    _check_int(where, 'bits', bits)
    if bits != FLOAT_BITS and not 2 <= bits <= 8:
        raise ConfigError(f'{where}: bits={bits} is not possible. Expected 2 to 8, or {FLOAT_BITS} for float')


def _check_int(where: str, key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f'{where}: {key}={value!r} is not an integer')


def _check_number(where: str, key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f'{where}: {key}={value!r} is not a number')


def _check_multiplier(where: str, k: Any) -> None:
    if k is None:
        return
    _check_number(where, 'k', k)
    if not 0 < k < float('inf'):
        raise ConfigError(f'{where}: k={k} is not possible. Expected a positive number')


def _check_choice(where: str, key: str, value: Any, choices: tuple) -> None:
    if isinstance(value, bool) or value not in choices:
        raise ConfigError(f'{where}: {key}={value!r} is unknown. Expected one of {", ".join(map(repr, choices))}')
