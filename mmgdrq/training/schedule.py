"""When the stages of GDRQ begin."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Optional, Union

from ..errors import ConfigError, unknown_key

STAGE_KEYS = ('reshape', 'quantize', 'quantize_activation', 'freeze')


@dataclass(frozen=True)
class Schedule:
    """Begin of every stage, in finished epochs (or iterations); None: the stage does not happen.

    Attributes:
        reshape: begin of Scale-Clip without rounding.
        quantize: begin of rounding, of weights and activations.
        quantize_activation: begin of rounding the activations, where the weights go first.
        freeze: from here on activation ranges and BN statistics stay as they are; not before the first of the other
            stages, and together with it only for a model that has its ranges from a checkpoint.
        by_epoch: whether the numbers are epochs or iterations.

    >>> schedule = Schedule(reshape=1, quantize=3)
    >>> [schedule.stage_at(epoch) for epoch in range(5)]
    ['float', 'reshape', 'reshape', 'quantize', 'quantize']
    """

    reshape: Optional[int] = None
    quantize: Optional[int] = 0
    quantize_activation: Optional[int] = None
    freeze: Optional[int] = None
    by_epoch: bool = True

    def __post_init__(self) -> None:
        for key in STAGE_KEYS:
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ConfigError(f'stages: {key}={value!r} is not a number of epochs or iterations (0, 1, ...)')
        if not isinstance(self.by_epoch, bool):
            raise ConfigError(f'stages: by_epoch={self.by_epoch!r} is not True or False')
        order = [self.reshape, self.quantize, self.quantize_activation]
        given = [value for value in order if value is not None]
        if given != sorted(given):
            raise ConfigError(
                f'stages: reshape={self.reshape}, quantize={self.quantize}, quantize_activation='
                f'{self.quantize_activation} are not in this order'
            )
        if self.quantize_activation is not None and self.quantize is None:
            raise ConfigError('stages: quantize_activation needs quantize, the begin for the weights')
        if not given:
            raise ConfigError('stages: neither reshape nor quantize is given, so nothing would happen')
        if self.freeze is not None and self.freeze < given[0]:
            raise ConfigError(
                f'stages: freeze={self.freeze} comes before the first stage that sets activation ranges (at '
                f'{given[0]}), so there would be none. Let it begin later'
            )

    @classmethod
    def from_config(cls, config: Union['Schedule', Mapping[str, Any], None]) -> 'Schedule':
        """Build from a config dict; None quantizes from the beginning, a stage left out does not happen."""
        if config is None:
            return cls()
        if isinstance(config, cls):
            return config
        if not isinstance(config, Mapping):
            raise ConfigError(f'stages: expected a dict such as dict(reshape=0, quantize=3), got {config!r}')
        valid = [f.name for f in fields(cls)]
        for key in config:
            if key not in valid:
                raise unknown_key('stages', key, valid)
        return cls(**{'quantize': None, **config})

    @property
    def first(self) -> str:
        """The stage at the beginning."""
        return self.stage_at(0)

    @property
    def moves(self) -> bool:
        """Whether anything changes after the beginning, so that something has to lead the model."""
        return any((self.reshape, self.quantize, self.quantize_activation, self.freeze))

    def stage_at(self, now: int) -> str:
        """The stage after ``now`` epochs (or iterations)."""
        if self.quantize is not None and now >= self.quantize:
            later = self.quantize_activation
            return 'quantize_weight' if later is not None and now < later else 'quantize'
        return 'reshape' if self.reshape is not None and now >= self.reshape else 'float'

    def frozen_at(self, now: int) -> bool:
        """Whether ranges and BN statistics are frozen after ``now`` epochs (or iterations)."""
        return self.freeze is not None and now >= self.freeze
