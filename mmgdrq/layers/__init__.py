"""Quantized layers: thin modules that hold state around the functions of ``mmgdrq.quant``."""

from .attention import MultiheadAttention, Projection, call_projections
from .base import QuantizedLayer, attach_quantizers, built_specs, is_depthwise, is_quantized, quantize_layer
from .conv import Conv2d
from .conv_nd import Conv1d, Conv3d
from .linear import Linear
from .quantizers.activation_quantizer import ActivationQuantizer
from .quantizers.affine_quantizer import AffineQuantizer
from .quantizers.state import CLIP, FLOAT, QUANTIZE, STAGES, ModelState
from .quantizers.weight_quantizer import WeightQuantizer
from .relu import LeanReLU, set_lean_relu
from .supported import Replacement, float_reason, let_parents_read, read_reasons, replacement, replacements
from .transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from .walk import activation_quantizers, is_quantized_model, quantized_layers

__all__ = [
    'CLIP',
    'FLOAT',
    'QUANTIZE',
    'STAGES',
    'ActivationQuantizer',
    'AffineQuantizer',
    'Conv1d',
    'Conv2d',
    'Conv3d',
    'ConvTranspose1d',
    'ConvTranspose2d',
    'ConvTranspose3d',
    'LeanReLU',
    'Linear',
    'ModelState',
    'MultiheadAttention',
    'Projection',
    'QuantizedLayer',
    'Replacement',
    'WeightQuantizer',
    'activation_quantizers',
    'attach_quantizers',
    'built_specs',
    'call_projections',
    'float_reason',
    'is_depthwise',
    'is_quantized',
    'is_quantized_model',
    'let_parents_read',
    'quantize_layer',
    'quantized_layers',
    'read_reasons',
    'replacement',
    'replacements',
    'set_lean_relu',
]
