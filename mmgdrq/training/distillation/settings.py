"""What a config says about distillation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Optional

from ...errors import ConfigError, unknown_key


@dataclass(frozen=True)
class Distillation:
    """How strongly, and from which weights, the float network teaches the quantized one.

    Attributes:
        checkpoint: file or URL of the teacher's float weights; None: those that the training starts from.
        weight: factor on the losses of the distillation.
        task_weight: factor on the losses of the task; None: 1, and for a classifier 0.1, as its logits say all that a
            label says.
        temperature: by which logits are divided before softmax (Hinton et al. 2015, section 2).
        features: factor on the loss of the neck's features, beside ``weight``; 0 leaves it out.

    Raises:
        ConfigError: a bad value.
    """

    checkpoint: Optional[str] = None
    weight: float = 1.0
    task_weight: Optional[float] = None
    temperature: float = 4.0
    features: float = 1.0

    def __post_init__(self) -> None:
        if self.checkpoint is not None and not isinstance(self.checkpoint, str):
            raise ConfigError(f'distill: checkpoint={self.checkpoint!r} is not the name of a file')
        for key, lowest in (('weight', 0), ('task_weight', 0), ('features', 0), ('temperature', None)):
            value = getattr(self, key)
            if key == 'task_weight' and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float('inf'):
                raise ConfigError(f'distill: {key}={value!r} is not possible. Expected a number from 0 on')
            if lowest is None and value == 0:
                raise ConfigError(f'distill: {key}=0 is not possible. Expected a positive number')

    @classmethod
    def from_config(cls, config: Any) -> 'Distillation':
        """Build from the dict of a config; one that is built already is passed through.

        Raises:
            ConfigError: an unknown key or a bad value.

        >>> Distillation.from_config(dict(temperature=2.0)).temperature
        2.0
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, Mapping):
            raise ConfigError(f'distill: expected a dict such as dict(temperature=4.0), got {config!r}')
        valid = [field.name for field in fields(cls)]
        for key in config:
            if key not in valid:
                raise unknown_key('distill', key, valid)
        return cls(**config)
