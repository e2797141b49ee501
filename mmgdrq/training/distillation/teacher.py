"""Make a teacher of a float network."""

import copy

from torch import nn

from ...errors import ConfigError
from ...layers import is_quantized_model


def make_teacher(model: nn.Module) -> nn.Module:
    """A copy of a float network in evaluation mode that receives no gradient.

    Args:
        model: the float network, before it is quantized.

    Raises:
        ConfigError: the model is quantized.
    """
    if is_quantized_model(model):
        raise ConfigError('distill: the teacher would be a quantized model. Make it before mmgdrq.quantize(model, ...)')
    teacher = copy.deepcopy(model)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher.eval()
