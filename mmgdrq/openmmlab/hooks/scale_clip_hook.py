"""Scale-Clip of the weights as a hook of its own."""

from ...errors import ConfigError
from ...layers.walk import is_quantized_model
from ...quantized_model.iteration import manage_registered
from ...registry import HOOKS
from ...training.scale_clip import ScaleClip
from ..running.averages import AveragesHook
from ..running.optimizers import optimizers_of
from ..running.plan_log import log_plan
from ..wrappers import refuse_sharding, unwrap


@HOOKS.register_module()
class ScaleClipHook(AveragesHook):
    """Project the weights of the quantized layers after every real optimizer step.

    For models built by ``mmgdrq.Quantized`` or with registered ``mmgdrq.Conv2d`` layers; GDRQHook does the
    same by itself.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        """Let an iteration of the model be one of its registered layers."""
        manage_registered(unwrap(runner.model))

    def before_train(self, runner) -> None:
        """Attach the projection to the optimizers."""
        refuse_sharding(runner.model)
        model = unwrap(runner.model)
        if not is_quantized_model(model):
            raise ConfigError(
                'ScaleClipHook: the model has no quantized layer. Use GDRQHook, or build the model with '
                'mmgdrq.Quantized'
            )
        log_plan(model, runner.logger)
        super().before_train(runner)
        projection = ScaleClip(model)  # one, as it looks at all optimizers together
        self.handles = [projection.attach(optimizer) for optimizer in optimizers_of(runner)]

    def after_train(self, runner) -> None:
        """Detach the projection."""
        for handle in self.handles:
            handle.remove()
