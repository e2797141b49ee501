"""The teacher of a run: where it comes from, which weights it has, and when it teaches."""

from typing import Optional

from mmengine.runner import load_checkpoint
from torch import nn

from ...errors import CheckpointError, ConfigError
from ...layers import is_quantized_model
from ...training.distillation import Distillation, Distiller, make_teacher
from ..deployed.evaluation import build_float_model
from .distillation import distiller_of


class RunTeacher:
    """The float form of a run's model, which teaches it while it trains.

    Args:
        settings: of the config.
    """

    def __init__(self, settings: Distillation) -> None:
        self.settings = settings
        self.network: Optional[nn.Module] = None
        self.distiller: Optional[Distiller] = None

    def take(self, runner, model: nn.Module) -> None:
        """Take the float form of a model, before it is quantized, or of a config whose builder has quantized it."""
        float_form = build_float_model(runner.cfg, 'distill') if is_quantized_model(model) else model
        self.network = make_teacher(float_form)

    def begin(self, runner, student: nn.Module) -> None:
        """Give the teacher its weights, and let it teach.

        Raises:
            ConfigError: it is not known which weights it has.
            CheckpointError: its weights do not fit.
        """
        self.end()
        assert self.network is not None, 'take() comes first'
        source = self.settings.checkpoint or (None if _is_resumed(runner) else runner._load_from)
        if source is not None:
            _load(self.network, source)
        elif _is_resumed(runner):
            raise ConfigError(
                'distill: the training is resumed, so the model no longer has the float weights that its teacher had. '
                'Name them with distill=dict(checkpoint=FILE)'
            )
        else:
            own = self.network.state_dict()
            self.network.load_state_dict({key: value for key, value in student.state_dict().items() if key in own})
        self.distiller = distiller_of(student, self.network, self.settings)
        losses = ', '.join(tap.name for tap in self.distiller.taps)
        runner.logger.info('mmgdrq: a float teacher with the weights of %s: %s', source or 'this model', losses)

    def end(self) -> None:
        """Let it no longer teach."""
        if self.distiller is not None:
            self.distiller.remove()
            self.distiller = None


def _is_resumed(runner) -> bool:
    return runner.iter > 0 or runner.epoch > 0


def _load(teacher: nn.Module, source: str) -> None:
    try:
        load_checkpoint(teacher, source, map_location='cpu', strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f'distill: {source} does not hold the float weights of the whole model, so it cannot teach. Train the '
            'float model first and name its checkpoint with distill=dict(checkpoint=FILE) '
            f'({" ".join(str(error).split())[:300]})'
        ) from None
