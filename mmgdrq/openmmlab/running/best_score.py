"""The best score of a stage, which later stages are not measured by."""

import math

from mmengine.hooks import EarlyStoppingHook

KEY = 'best_score'
"""Where CheckpointHook keeps it in the message hub, with the name of the metric behind it where there are several."""


def forget_best(runner, stage: str) -> None:
    """Let CheckpointHook (``save_best``) and EarlyStoppingHook begin anew, as ``stage`` is over.

    The file of the best checkpoint stays known: it is replaced by the first one of the new stage.
    """
    keys = [key for key in runner.message_hub.runtime_info if key == KEY or key.startswith(f'{KEY}_')]
    for key in keys:
        score = runner.message_hub.pop_info(key)
        runner.logger.info(
            f"mmgdrq: {key}={score:.4f} is of stage '{stage}', which is over; the next evaluation sets a new best one"
        )
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook):
            hook.best_score = -math.inf if hook.rule == 'greater' else math.inf
            hook.wait_count = 0
