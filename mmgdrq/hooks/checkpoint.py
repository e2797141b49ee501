"""What the tools load: a checkpoint that must fit the config, or a deployed directory."""

from typing import Optional

from mmengine.hooks import Hook

from ..convert import is_quantized_model, quantization_keys
from ..deploy import load_folded, plug_engine
from ..errors import CheckpointError
from ..registry import HOOKS
from .gdrq import unwrap


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a quantized checkpoint for a config that builds a float model."""

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare the kind of the checkpoint with that of the model."""
        state = checkpoint.get('state_dict', checkpoint)
        if quantization_keys(state) and not is_quantized_model(unwrap(runner.model)):
            raise CheckpointError(
                'checkpoint: it belongs to a quantized model, but this config builds a float one, which would '
                'be something else than what was trained. Use the config it was trained with'
            )


@HOOKS.register_module()
class DeployedModelHook(Hook):
    """Replace the quantized model by the deployed one of a directory.

    Args:
        path: directory that ``tools/deploy.py`` wrote.
        engine: run the dense parts in ``'onnxruntime'`` or ``'openvino'``; None: torch.
    """

    # After GDRQHook (10) has quantized the model.
    priority = 'HIGH'

    def __init__(self, path: str, engine: Optional[str] = None) -> None:
        self.path, self.engine = path, engine
        self.model = None

    def before_run(self, runner) -> None:
        """Fold the layers and load their tensors, once."""
        model = unwrap(runner.model)
        if model is not self.model:
            self.model = load_folded(model, self.path)
            if self.engine is not None:
                plug_engine(model, self.path, self.engine)
            runner.logger.info('mmgdrq: deployed model of %s, run by %s', self.path, self.engine or 'torch')
