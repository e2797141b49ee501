"""The one object that says how a model is to be quantized, checked when it is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Optional

from ..deploy.simulation import check_simulates
from ..errors import ConfigError, unknown_key
from ..planning.rules import Rule, make_rules
from ..quant import ActivationSpec, WeightSpec, make_spec
from ..quantized_model.execution import Execution
from ..training.distillation.settings import Distillation
from ..training.schedule import Schedule


@dataclass(frozen=True)
class QuantConfig:
    """How a model is to be quantized. Each value is given as the object named here, or as the dict of a config.

    Attributes:
        weight: what the weights are quantized to, unless the plan or a rule says otherwise.
        activation: what the inputs of the layers are quantized to.
        rules: which layers have other bits, or stay in float.
        stages: when the stages begin; None: it is quantized from the beginning, whatever a checkpoint says.
        scale_clip: project the weights after every optimizer step, except in the float stage.
        execution: how the model computes, not what; None: as it does by default.
        deploy: the engine whose results the model computes, see :func:`mmgdrq.deploy.simulate`; None: none.
        distill: how the float network teaches the quantized one; None: it does not.

    Raises:
        ConfigError: a bad value, or an unknown key of a part; it names the key and the nearest valid one.

    >>> QuantConfig(weight=dict(bits=3)).weight.bits
    3
    >>> QuantConfig(weight=dict(bit=3))
    Traceback (most recent call last):
    mmgdrq.errors.ConfigError: weight: unknown key 'bit'. Did you mean 'bits'? Valid keys: bits, ...
    """

    weight: WeightSpec = WeightSpec()  # noqa: RUF009 (frozen)
    activation: ActivationSpec = ActivationSpec()  # noqa: RUF009
    rules: Sequence[Rule] = ()
    stages: Optional[Schedule] = None
    scale_clip: bool = True
    execution: Optional[Execution] = None
    deploy: Optional[str] = None
    distill: Optional[Distillation] = None

    def __post_init__(self) -> None:
        made = dict(
            weight=make_spec(WeightSpec, self.weight, 'weight'),
            activation=make_spec(ActivationSpec, self.activation, 'activation'),
            rules=make_rules(self.rules),
            stages=None if self.stages is None else Schedule.from_config(self.stages),
            distill=None if self.distill is None else Distillation.from_config(self.distill),
            execution=None if self.execution is None else Execution.from_config(self.execution),
        )
        for key, value in made.items():
            object.__setattr__(self, key, value)
        if not isinstance(self.scale_clip, bool):
            raise ConfigError(f'scale_clip={self.scale_clip!r} is not True or False')
        if self.deploy is not None:
            check_simulates(self.deploy)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str, others: Sequence[str] = ()) -> 'QuantConfig':
        """Build from a config dict; None stands for the default of a key.

        Args:
            config: the dict, with some of :data:`KEYS`.
            where: what errors about an unknown key call it.
            others: keys that belong there too, but not to this object; errors name them.

        Raises:
            ConfigError: an unknown key or a bad value.
        """
        for key in config:
            if key not in KEYS:
                raise unknown_key(where, key, [*KEYS, *others])
        return cls(**{key: value for key, value in config.items() if value is not None or key == 'scale_clip'})

    @property
    def schedule(self) -> Schedule:
        """When the stages begin."""
        return Schedule() if self.stages is None else self.stages


KEYS = tuple(field.name for field in fields(QuantConfig))
"""The keys of a config."""
