"""The hook that looks at the inputs of all layers now and then; see :mod:`mmgdrq.quantized_model.range_check`."""

from typing import Optional

from mmengine.hooks import Hook

from ...quantized_model.range_check import FIRST_LOOK, INTERVAL, RangeCheck
from ...quantized_model.state import states_in
from ...registry import HOOKS
from ..wrappers import unwrap


@HOOKS.register_module()
class RangeCheckHook(Hook):
    """Warn of inputs that the range of their layer does not fit; GDRQHook does it by itself.

    Whether an input is signed (``signed='auto'``) is decided by its first iteration; an input that becomes negative
    later is cut off at zero. A threshold does not follow inputs that are not finite. A layer that no forward pass has
    called computes nothing, or its parent reads its float weight. Every ``interval`` iterations, and early in a run,
    one iteration is looked at, and each such layer is named once.

    Args:
        interval: iterations between two looks; other iterations cost nothing.
    """

    def __init__(self, interval: int = INTERVAL) -> None:
        self.interval = interval
        self.first: Optional[int] = None
        self.named: set[tuple[str, str]] = set()
        self.look: Optional[RangeCheck] = None

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Look at the inputs of this iteration, if it is time."""
        model = unwrap(runner.model)
        if self.first is None:
            self.first = runner.iter + FIRST_LOOK
            for state in states_in(model):  # which would do it as well, as in a training loop of one's own
                state.checks_ranges = False
        if runner.iter == self.first or (runner.iter + 1) % self.interval == 0:
            self.look = RangeCheck(model, self.named)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        """Report."""
        if self.look is not None:
            for finding in self.look.findings(unwrap(runner.model)):
                runner.logger.warning(finding)
            self.look = None
