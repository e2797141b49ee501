"""What an averaged copy of a model (EMAHook) must not average: the stage and the state of the quantizers.

mmengine copies the buffers of the model, or with ``update_buffers=True`` averages them, except that integers and
flags then stay what they were in the first iteration. An average over a threshold that was not set yet, and the
stage of the first iteration, would belong to another model than the one that is trained.
"""

from collections.abc import Iterator
from typing import Optional

import torch
from mmengine.hooks import EMAHook, Hook
from torch import nn

from ...errors import ConfigError
from ...layers import ActivationQuantizer, WeightQuantizer
from ...quantized_model.loading import check_saves_ranges
from ...quantized_model.stages import freeze, switch_stage
from ...quantized_model.state import is_root, state_of
from ..wrappers import unwrap

Pair = tuple[nn.Module, nn.Module]


class AveragesHook(Hook):
    """Base of the hooks that lead a quantized model: its averaged copies get its stage, ranges and signs.

    Learned ranges are parameters, so they are averaged like the weights; the average begins where the range does.
    """

    def before_train(self, runner) -> None:
        """Find the learned ranges; their averages begin later than those of the weights."""
        check_saves_ranges(unwrap(runner.model))
        self._learned = [pair for pair in _pairs(runner) if pair[0].learned() is not None]

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        """Let the average of a learned range begin with its first value."""
        for quantizer, average in self._learned:
            if quantizer.is_ready() and not average.is_ready():
                average.load_state_dict(quantizer.state_dict())

    def before_val_epoch(self, runner) -> None:
        """Copy what is not averaged, before EMAHook lets the average be evaluated."""
        copy_state(runner)

    def before_test_epoch(self, runner) -> None:
        """The same before a test."""
        copy_state(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """The same before EMAHook puts the average into the checkpoint."""
        copy_state(runner)


@torch.no_grad()
def copy_state(runner) -> None:
    """Give the averaged copies of the runner's model its stage and the buffers of its quantizers."""
    for quantizer, average in _pairs(runner):
        buffers = dict(quantizer.named_buffers())
        state = {key: value for key, value in quantizer.state_dict().items() if key in buffers}
        average.load_state_dict(state, strict=False)
    model = unwrap(runner.model)
    if is_root(model):
        for average in _averages(runner):
            switch_stage(average, state_of(model).stage)
            freeze(average, state_of(model).frozen)


def _averages(runner) -> Iterator[nn.Module]:
    return (hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook))


def _pairs(runner) -> Iterator[Pair]:
    """Every quantizer of the model with its counterpart in every averaged copy."""
    for average in _averages(runner):
        modules = dict(average.named_modules())
        for name, module in unwrap(runner.model).named_modules():
            if isinstance(module, (WeightQuantizer, ActivationQuantizer)):
                if name not in modules:
                    raise ConfigError(
                        f'EMAHook: its copy of the model has no {name}, as it was made before the model was quantized. '
                        'Give EMAHook a priority below that of GDRQHook (VERY_HIGH), such as 49'
                    )
                yield module, modules[name]
