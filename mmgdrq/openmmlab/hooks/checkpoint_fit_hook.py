"""What the tools load: a checkpoint that must fit the config, or a deployed directory."""

from collections.abc import Mapping

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from ...errors import CheckpointError
from ...layers.walk import is_quantized_model
from ...quantized_model.loading import quantization_keys
from ...registry import HOOKS
from ..running.checkpoint_code import drop_code
from ..wrappers import unwrap


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a checkpoint that would give another model than the config says; mmengine only logs it.

    Args:
        whole: to evaluate or to resume, every weight of the model must be in the checkpoint with its shape, finite,
            and nothing must be left over. Without it a training starts from what fits, such as a backbone.
        float_weights: with ``whole``, a checkpoint of the float model is accepted for the quantized one.
    """

    def __init__(self, whole: bool = False, float_weights: bool = False) -> None:
        self.whole, self.float_weights = whole, float_weights

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the model."""
        drop_code(checkpoint)
        state = checkpoint.get('state_dict', checkpoint)
        model = unwrap(runner.model)
        needs_ranges = self.whole and not self.float_weights and is_quantized_model(model)
        if needs_ranges and not quantization_keys(state):
            raise CheckpointError(
                'checkpoint: it is a float checkpoint, but this config builds a quantized model, whose ranges are not '
                'in it. Train from it first (load_from in the config), calibrate it (tools/calibrate.py), or use the '
                'float config'
            )
        if self.whole:
            _check_tensors(model.state_dict(), state)
            _check_keys_while_loading(model)


def _check_tensors(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for key, tensor in state.items():
        key = key.removeprefix('module.')
        asked = expected[key].shape if key in expected else tensor.shape
        one_number = tensor.numel() == asked.numel() == 1  # a learned range of an older version has no dimension
        if tensor.shape != asked and not one_number:
            raise CheckpointError(
                f'checkpoint: {key} has shape {tuple(tensor.shape)}, but the config builds {tuple(asked)}. '
                'Use the config it was trained with'
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f'checkpoint: {key} is not finite. Use an earlier checkpoint of this training')


def _check_keys_while_loading(model: nn.Module) -> None:
    """Layers may rename keys of older versions, so what is missing is known only when they have loaded."""
    checked = False

    def check(module: nn.Module, keys) -> None:
        nonlocal checked
        if checked:  # once; mmengine walks through the hooks now, so that none can be removed
            return
        checked = True
        missing = [key for key in keys.missing_keys if not key.endswith('num_batches_tracked')]
        for found, text in (
            (missing, 'is in the model that the config builds, but not in the file'),
            (keys.unexpected_keys, 'is in the file, but not in the model that the config builds'),
        ):
            if found:
                raise CheckpointError(
                    f'checkpoint: {found[0]} {text} ({len(found)} such tensors). Use the config it was trained with'
                )

    model.register_load_state_dict_post_hook(check)
