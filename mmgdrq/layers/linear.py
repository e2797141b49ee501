"""Quantized linear layer."""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import ActivationConfig, QuantizedLayer, WeightConfig, attach_quantizers


class Linear(QuantizedLayer, nn.Linear):
    """``nn.Linear`` whose weight and input are fake-quantized.

    Args:
        *args, **kwargs: as for ``nn.Linear``.
        weight: dict of :class:`mmgdrq.quant.WeightSpec`.
        activation: dict of :class:`mmgdrq.quant.ActivationSpec`.

    Shape:
        input ``(..., in_features)``, output ``(..., out_features)``.
    """

    folds_as = 'linear'

    def __init__(self, *args, weight: WeightConfig = None, activation: ActivationConfig = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        attach_quantizers(self, weight, activation)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight_quantizer(self.weight)
        return F.linear(self.activation_quantizer(input), weight, self.bias)
