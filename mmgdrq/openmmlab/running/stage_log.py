"""What the log says about stages: which one a model is in, and which one never comes."""

from ...quantized_model.stages import get_stage
from ...quantized_model.state import is_root
from ...training.schedule import STAGE_KEYS, Schedule
from ..wrappers import unwrap

NOT_ROUNDED = {
    'float': 'nothing is rounded',
    'reshape': 'nothing is rounded',
    'quantize_weight': 'the inputs of the layers are not rounded',
}


def warn_unreached(runner, schedule: Schedule) -> None:
    """Name the stages of ``schedule`` that begin when the training is over."""
    by_epoch = schedule.by_epoch
    end, unit = (runner.max_epochs, 'epochs') if by_epoch else (runner.max_iters, 'iterations')
    last = schedule.stage_at(end - 1)
    rounding = f' ({NOT_ROUNDED[last]})' if last in NOT_ROUNDED else ''
    for key in STAGE_KEYS:
        begin = getattr(schedule, key)
        if begin is not None and begin >= end:
            runner.logger.warning(
                f'mmgdrq: stages: {key}={begin} is never reached: the training ends after {end} {unit}, in stage '
                f"'{last}'{rounding}. Let it begin earlier, or train longer"
            )


def warn_unrounded(runner) -> None:
    """Say that a quantized model is about to be evaluated without its rounding, or some of it.

    The iteration is named, as mmengine logs a warning with equal text only once.
    """
    model = unwrap(runner.model)
    if not is_root(model):
        return
    stage = get_stage(model)
    if stage in NOT_ROUNDED:
        when = f' (iteration {runner.iter})' if runner.iter else ''
        runner.logger.warning(f"mmgdrq: evaluating in stage '{stage}': {NOT_ROUNDED[stage]}{when}")
