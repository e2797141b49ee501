"""Do to a model what a config says: plan, convert, simulate an engine, choose how to compute."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

from torch import nn

from ..deploy.simulation import simulate
from ..errors import ConfigError
from ..planning.fit import check_fits
from ..planning.plan import Plan
from ..planning.policy import make_plan, plan_as_built
from ..planning.rules import Rule
from ..planning.traced_inputs import Example
from ..quant import ActivationSpec, WeightSpec
from ..quantized_model.conversion import check_convertible, convert
from ..quantized_model.execution import Execution, set_execution
from ..quantized_model.stages import check_stage, need_leader
from ..quantized_model.state import is_root, state_of
from ..quantized_model.undo import undone_on_error
from .quant_config import QuantConfig

Config = Union[QuantConfig, Mapping[str, Any]]
WeightConfig = Union[None, Mapping[str, Any], WeightSpec]
ActivationConfig = Union[None, Mapping[str, Any], ActivationSpec]
RuleConfig = Union[Rule, Mapping[str, Any]]


def quantize(
    model: nn.Module,
    weight: WeightConfig = None,
    activation: ActivationConfig = None,
    rules: Sequence[RuleConfig] = (),
    *,
    plan: Optional[Plan] = None,
    config: Optional[Config] = None,
    example: Optional[Example] = None,
    stage: Optional[str] = None,
    follow_checkpoint: Optional[bool] = None,
) -> nn.Module:
    """Quantize ``model`` in place and return it.

    Parameters, their names, aliases and hooks stay what they are: optimizers that exist already and float
    checkpoints go on working. ``mmgdrq.state(model).plan`` is the plan.

    Args:
        model: any module; its own forward pass defines one training iteration. Of one that ``torch.compile``
            has wrapped, the model inside is quantized.
        weight: dict of :class:`~mmgdrq.quant.WeightSpec`.
        activation: dict of :class:`~mmgdrq.quant.ActivationSpec`.
        rules: see :func:`mmgdrq.plan`.
        plan: what :func:`mmgdrq.plan` gave, as it is or edited; in place of weight, activation and rules.
        config: a :class:`QuantConfig`, or its dict, in place of weight, activation and rules. Without a plan it says
            all; beside one, everything but these three.
        example: see :func:`mmgdrq.plan`.
        stage: stage to start in, see :mod:`mmgdrq.quantized_model.stages`; None: that of the config, or ``'quantize'``.
        follow_checkpoint: whether a loaded checkpoint decides the stage; None: where the config has stages.

    Raises:
        ConfigError: a bad key or value, an unknown stage, a rule that matches nothing, a plan of another model, or
            nothing to quantize. The model is as it was then.

    >>> from mmgdrq import state
    >>> from torch import nn
    >>> model = quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)))
    >>> [row.weight.bits for row in state(model).plan]
    [8, 2, 8]
    """
    if stage is not None:
        check_stage(stage)
    whole = _whole_config(weight, activation, rules, config)
    original = _not_compiled(model)
    check_convertible(original)
    if plan is not None:
        if (whole.weight, whole.activation, whole.rules) != (WeightSpec(), ActivationSpec(), ()):
            raise ConfigError('plan: it says all about weight, activation and rules. Give it, or them')
        check_fits(plan, original)
    if plan is None:
        plan = make_plan(original, whole.weight, whole.activation, whole.rules, example)
    apply_config(original, whole, plan, stage=stage, follow_checkpoint=follow_checkpoint)
    if stage is None and whole.schedule.moves:
        need_leader(original)
    return model


def plan(
    model: nn.Module,
    weight: WeightConfig = None,
    activation: ActivationConfig = None,
    rules: Sequence[RuleConfig] = (),
    *,
    config: Optional[Config] = None,
    example: Optional[Example] = None,
) -> Plan:
    """Decide for every weight layer of ``model`` what it is quantized to; the model is not changed.

    Of a quantized model it is what its layers are quantized to, and why they were.

    Default policy: convolutions that read the image, each task's last prediction layers and frozen layers at
    8 bits, all other layers at the asked bits. Then the rules, in order; later rules win.

    Args:
        model: any module.
        weight: dict of :class:`~mmgdrq.quant.WeightSpec`.
        activation: dict of :class:`~mmgdrq.quant.ActivationSpec`.
        rules: dicts with ``pattern`` (glob over qualified names; also matches all layers below the named
            module) and/or ``kind`` (``'conv'`` or ``'linear'``), and either ``skip=True`` or ``weight`` /
            ``activation`` overrides. An override with ``bits`` quantizes what an earlier rule skips; one without
            leaves it in float.
        config: a :class:`QuantConfig`, or its dict, in place of these three.
        example: an input of the model: a tensor, a tuple of arguments, a dict of keyword arguments, or a function that
            runs the model it is given. The model runs once, in evaluation mode, and the layers that read its input are
            found by what they read; without it by their channels and names. The plan says which of the two decided.

    Raises:
        ConfigError: a bad key or value, or a rule that matches no layer.

    >>> rows = plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)), dict(bits=4))
    >>> rows = rows.set('1', weight_bits=2)
    >>> model = quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)), plan=rows)
    >>> [layer.weight_quantizer.spec.bits for layer in model]
    [8, 2, 8]
    """
    whole = _whole_config(weight, activation, rules, config)
    original = _not_compiled(model)
    if not is_root(original):
        return make_plan(original, whole.weight, whole.activation, whole.rules, example)
    if whole != QuantConfig():
        raise ConfigError('plan: the model is quantized already. Plan the float model, or ask for no other bits')
    return plan_as_built(original, state_of(original).plan)


def apply_config(
    model: nn.Module,
    config: QuantConfig,
    plan: Optional[Plan] = None,
    *,
    stage: Optional[str] = None,
    follow_checkpoint: Optional[bool] = None,
) -> Optional[Execution]:
    """Do to a float model, in place, all that a config says.

    Args:
        model: the float model.
        config: what to do.
        plan: of this model and config, where one has been made.
        stage: to start in another one than the config says.
        follow_checkpoint: whether a loaded checkpoint decides the stage; None: where the config has stages.

    Returns:
        How it computes, where the config says it.

    Raises:
        ConfigError: it cannot be done to this model, which is as it was then.
    """
    check_convertible(model)
    if plan is None:
        plan = make_plan(model, config.weight, config.activation, config.rules)
    follow = config.stages is not None if follow_checkpoint is None else follow_checkpoint
    with undone_on_error(model):
        convert(model, plan, stage or config.schedule.first, follow)
        return finish(model, config)


def finish(model: nn.Module, config: QuantConfig) -> Optional[Execution]:
    """Do to a quantized model, in place, what a config says of simulation and execution.

    Returns:
        How it computes, where the config says it.
    """
    if config.deploy is not None:
        simulate(model, config.deploy)
    if config.execution is None:
        return None
    return set_execution(model, **vars(config.execution))


def _not_compiled(model: nn.Module) -> nn.Module:
    """The model that ``torch.compile`` has wrapped: the wrapper runs it, so what is done to it is compiled."""
    return getattr(model, '_orig_mod', model)


def _whole_config(weight, activation, rules, config: Optional[Config]) -> QuantConfig:
    if config is None:
        return QuantConfig.from_config(dict(weight=weight, activation=activation, rules=rules), 'quantize')
    if weight is not None or activation is not None or rules:
        raise ConfigError('config: it says all about weight, activation and rules. Give it, or them')
    if isinstance(config, QuantConfig):
        return config
    if not isinstance(config, Mapping):
        raise ConfigError(f'config: expected a dict such as dict(weight=dict(bits=2)), got {config!r}')
    return QuantConfig.from_config(config, 'config')
