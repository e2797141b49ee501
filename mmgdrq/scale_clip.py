"""Scale-Clip of the weights: a projection after every real optimizer step."""

from torch import nn
from torch.optim import Optimizer

from .layers import WeightQuantizer, quantized_layers
from .optimizer_check import check_optimizer, check_quantized


class ScaleClip:
    """Projects the weights of all quantized layers of a model to ``[-k mean|W_g|, k mean|W_g|]``.

    Args:
        model: a quantized model.

    Attributes:
        enabled: whether the projection happens.

    Raises:
        ConfigError: the model is not quantized.
    """

    def __init__(self, model: nn.Module) -> None:
        check_quantized(model, 'ScaleClip')
        self.model = model
        self.enabled = True
        for module in model.modules():
            if hasattr(module, 'gdrq_clipped'):  # the builder's model, which warns without it
                module.gdrq_clipped = True

    def attach(self, optimizer: Optimizer):
        """Project after every ``optimizer.step()`` that really happens; steps that a GradScaler skips and
        iterations that only accumulate gradients do not project.

        Returns:
            A handle; ``handle.remove()`` ends it.

        Raises:
            ConfigError: it is no optimizer of torch.
        """
        check_optimizer(self.model, optimizer)
        return optimizer.register_step_post_hook(lambda *_: self())

    def __call__(self) -> None:
        """Project now, if enabled."""
        if not self.enabled:
            return
        for layer in quantized_layers(self.model):
            if isinstance(layer.weight_quantizer, WeightQuantizer) and layer.stored_weight().requires_grad:
                layer.scale_clip_()
