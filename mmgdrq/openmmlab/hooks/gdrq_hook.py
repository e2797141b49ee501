"""The hook that quantizes the model of a Runner and leads it through the stages of GDRQ."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from mmengine.runner import IterBasedTrainLoop
from torch import nn

from ...config.apply import apply_config, finish
from ...config.quant_config import QuantConfig
from ...deploy import simulated
from ...errors import ConfigError
from ...planning.plan import Plan
from ...planning.policy import make_plan
from ...quant import rule_of
from ...quantized_model.execution import Execution
from ...quantized_model.stages import freeze, set_stage
from ...quantized_model.state import is_root, state_of
from ...registry import HOOKS
from ...training.scale_clip import ScaleClip
from ...training.schedule import Schedule
from ..running.averages import AveragesHook
from ..running.best_score import forget_best
from ..running.checkpoint_code import drop_code
from ..running.optimizers import optimizers_of
from ..running.plan_log import log_plan
from ..running.stage_log import warn_unreached, warn_unrounded
from ..running.teacher import RunTeacher
from ..wrappers import refuse_sharding, unwrap
from .range_check_hook import RangeCheckHook

UNCLIPPED_STAGES = ('float',)


@HOOKS.register_module()
class GDRQHook(AveragesHook):
    """Quantize the runner's model before it loads a checkpoint, and switch its stages while it trains.

    With a model built by ``mmgdrq.Quantized`` the hook only leads through the stages; it then takes neither
    ``weight`` nor ``activation`` nor ``rules``.

    Args:
        weight: dict of :class:`~mmgdrq.quant.WeightSpec`; defaults to 2 bits.
        activation: dict of :class:`~mmgdrq.quant.ActivationSpec`; defaults to 4 bits.
        rules: see :func:`mmgdrq.plan`.
        stages: dict of :class:`~mmgdrq.training.schedule.Schedule`; defaults to quantizing from the beginning.
        scale_clip: project the weights after every real optimizer step, except in the float stage.
        execution: dict of :class:`~mmgdrq.quantized_model.execution.Execution`: how the model computes, not what.
        deploy: ``'onnxruntime'`` lets the model compute, in training and evaluation, what that engine will:
            see :func:`mmgdrq.deploy.simulate`.
        distill: dict of :class:`~mmgdrq.training.distillation.Distillation`: the float network teaches the
            quantized one.

    Raises:
        ConfigError: an unknown key, a bad value, a rule that matches nothing.
    """

    # Before EMAHook (49) copies the model, and before it averages the weights.
    priority = 'VERY_HIGH'

    def __init__(
        self,
        weight: Optional[Mapping[str, Any]] = None,
        activation: Optional[Mapping[str, Any]] = None,
        rules: Sequence[Mapping[str, Any]] = (),
        stages: Optional[Mapping[str, Any]] = None,
        scale_clip: bool = True,
        execution: Optional[Mapping[str, Any]] = None,
        deploy: Optional[str] = None,
        distill: Optional[Mapping[str, Any]] = None,
        **unknown: Any,
    ) -> None:
        asked: dict[str, Any] = dict(
            weight=weight, activation=activation, rules=rules, stages=stages, scale_clip=scale_clip
        )
        asked.update(execution=execution, deploy=deploy, distill=distill, **unknown)
        self.config = QuantConfig.from_config(asked, 'GDRQHook', others=['priority'])
        self.schedule = self.config.schedule
        self.given = [key for key in ('weight', 'activation', 'rules') if asked[key]]
        self.range_check = RangeCheckHook()
        self.model: Any = None
        self.projection: Optional[ScaleClip] = None
        self.teacher = None if self.config.distill is None else RunTeacher(self.config.distill)

    def before_run(self, runner) -> None:
        """Quantize the model, once; checkpoints are loaded after this."""
        refuse_sharding(runner.model)
        model = unwrap(runner.model)
        if model is self.model:
            return
        self.model = model
        _refuse_bypasses(runner)
        if self.teacher is not None:
            self.teacher.take(runner, model)
        if is_root(model):
            self._manage_built(model)
            execution = finish(model, self.config)
        else:
            execution = self._quantize(runner, model)
        if self.config.deploy is not None:
            results = simulated(model).values()
            rounded = sum(not isinstance(result.quantizer, nn.Identity) for result in results)
            text = 'mmgdrq: simulating %s: %d biases are rounded, and %d results to 8 bits'
            runner.logger.info(text, self.config.deploy, len(results), rounded)
        if execution is not None:
            runner.logger.info('mmgdrq: %s', execution)
        log_plan(model, runner.logger)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Leave out what mmengine would run as code."""
        drop_code(checkpoint)

    def before_train(self, runner) -> None:
        """Enter the stage of the present epoch or iteration and attach Scale-Clip to the optimizers."""
        by_iter = isinstance(runner.train_loop, IterBasedTrainLoop)
        if by_iter and self.schedule.by_epoch and self.schedule != Schedule():
            raise ConfigError(
                'stages: this config trains by iterations; set by_epoch=False and give the begin of the stages '
                'in iterations'
            )
        if self.projection is None and self.config.scale_clip:
            self.projection = ScaleClip(self.model)
            for optimizer in optimizers_of(runner):
                self.projection.attach(optimizer)
        super().before_train(runner)
        self._enter(runner)
        if self.teacher is not None:
            self.teacher.begin(runner, self.model)
        runner.logger.info("mmgdrq: the training starts in stage '%s'", state_of(self.model).stage)
        warn_unreached(runner, self.schedule)

    def after_train(self, runner) -> None:
        """End the distillation."""
        if self.teacher is not None:
            self.teacher.end()

    def before_val_epoch(self, runner) -> None:
        """Say what is not rounded in this stage."""
        super().before_val_epoch(runner)
        warn_unrounded(runner)

    def before_test_epoch(self, runner) -> None:
        """The same before a test."""
        super().before_test_epoch(runner)
        warn_unrounded(runner)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Enter a new stage when its time has come."""
        self._enter(runner)
        self.range_check.before_train_iter(runner, batch_idx)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        """Warn of inputs that do not fit their range."""
        super().after_train_iter(runner, batch_idx)
        self.range_check.after_train_iter(runner, batch_idx)

    def _manage_built(self, model: nn.Module) -> None:
        if self.given:
            raise ConfigError(
                f'GDRQHook.{self.given[0]}: the model is built by mmgdrq.Quantized already; put it into model.quant'
            )
        state = state_of(model)
        state.led = state.clipped = True  # or not clipped, as the hook says so
        if self.config.stages is not None:
            state.follows_checkpoints = True
        elif state.schedule is not None:
            self.schedule = state.schedule

    def _quantize(self, runner, model: nn.Module) -> Optional[Execution]:
        if getattr(runner, '_has_loaded', False) or type(runner).__name__ == 'FlexibleRunner':
            raise ConfigError(
                f'GDRQHook: {type(runner).__name__} has built and loaded the model before hooks run. Use the '
                "builder instead: model=dict(type='mmgdrq.Quantized', base_type=..., quant=dict(...))"
            )
        plan = make_plan(model, self.config.weight, self.config.activation, self.config.rules)
        _refuse_learned(plan)
        return apply_config(model, self.config, plan)

    def _enter(self, runner) -> None:
        now = runner.epoch if self.schedule.by_epoch else runner.iter
        stage, frozen = self.schedule.stage_at(now), self.schedule.frozen_at(now)
        state = state_of(self.model)
        if stage != state.stage:
            forget_best(runner, state.stage)
            set_stage(self.model, stage)
            runner.logger.info("mmgdrq: stage '%s' begins", stage)
        if frozen and not state.frozen:
            runner.logger.info('mmgdrq: activation ranges and BN statistics are frozen from here on')
        if frozen != state.frozen:
            freeze(self.model, frozen)
        if self.projection is not None:
            self.projection.enabled = stage not in UNCLIPPED_STAGES


def _refuse_learned(plan: Plan) -> None:
    for row in plan.pending:
        for key, spec in (('weight', row.weight), ('activation', row.activation)):
            if spec is not None and spec.enabled and rule_of(spec).learned:
                raise ConfigError(
                    f"GDRQHook: range='{spec.range}' for the {key} of '{row.name}' adds parameters, but the "
                    'optimizer exists before hooks run. Use the builder: '
                    "model=dict(type='mmgdrq.Quantized', base_type=..., quant=dict(...))"
                )


def _refuse_bypasses(runner) -> None:
    if runner.cfg.get('efficient_conv_bn_eval'):
        raise ConfigError(
            'efficient_conv_bn_eval: it reads the float weights and would bypass quantization. Remove it '
            'from the config'
        )
