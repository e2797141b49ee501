"""Quantized layers: thin modules that hold state around the functions of ``mmgdrq.quant``."""

from .base import attach_quantizers, is_quantized, quantize_layer
from .conv import Conv2d
from .execution import Execution, set_execution
from .iteration import activation_quantizers, manage, quantized_layers
from .linear import Linear
from .quantizer import CLIP, FLOAT, QUANTIZE, ActivationQuantizer, WeightQuantizer
from .relu import LeanReLU, set_lean_relu

__all__ = [
    'CLIP',
    'FLOAT',
    'QUANTIZE',
    'ActivationQuantizer',
    'Conv2d',
    'Execution',
    'LeanReLU',
    'Linear',
    'WeightQuantizer',
    'activation_quantizers',
    'attach_quantizers',
    'is_quantized',
    'manage',
    'quantize_layer',
    'quantized_layers',
    'set_execution',
    'set_lean_relu',
]
