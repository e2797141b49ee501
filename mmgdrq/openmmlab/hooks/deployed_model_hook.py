"""Put a deployed model in the place of the quantized one."""

from typing import Optional

from mmengine.hooks import Hook
from torch import nn

from ...deploy import load_folded, plug_engine
from ...registry import HOOKS
from ..wrappers import unwrap


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
        self.model: Optional[nn.Module] = None

    def before_run(self, runner) -> None:
        """Fold the layers and load their tensors, once."""
        model = unwrap(runner.model)
        if model is not self.model:
            self.model = load_folded(model, self.path)
            if self.engine is not None:
                plug_engine(model, self.path, self.engine)
            runner.logger.info('mmgdrq: deployed model of %s, run by %s', self.path, self.engine or 'torch')
