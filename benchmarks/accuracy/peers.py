"""Models quantized by other libraries, for comparison; benchmarks/requirements.txt names the releases."""

from torch import nn


def quantize_with_brevitas(model: nn.Module, weight_bits: int, activation_bits: int) -> nn.Module:
    """Replace the convolutions and linear layers of ``model`` by brevitas' layers; the first and the last have 8 bits.

    Weights have a learned scale per filter that starts at the least squared error, inputs a learned scale that
    starts from the first batches, as brevitas' own low-bit examples have it.
    """
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for number, (name, layer) in enumerate(layers):
        outer = number in (0, len(layers) - 1)
        bits = (8, 8) if outer else (weight_bits, activation_bits)
        parent, _, attribute = name.rpartition('.')
        setattr(model.get_submodule(parent), attribute, _brevitas_layer(layer, *bits, signed=number == 0))
    return model


def _brevitas_layer(layer: nn.Module, weight_bits: int, activation_bits: int, signed: bool) -> nn.Module:
    from brevitas import nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloatMSE, Uint8ActPerTensorFloat

    options = dict(
        bias=layer.bias is not None,
        weight_quant=Int8WeightPerChannelFloatMSE,
        weight_bit_width=weight_bits,
        weight_scaling_impl_type='parameter_from_stats',
        input_quant=Int8ActPerTensorFloat if signed else Uint8ActPerTensorFloat,
        input_bit_width=activation_bits,
        input_collect_stats_steps=10,
    )
    if isinstance(layer, nn.Linear):
        new = qnn.QuantLinear(layer.in_features, layer.out_features, **options)
    else:
        shape = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        new = qnn.QuantConv2d(*shape, groups=layer.groups, **options)
    new.load_state_dict(layer.state_dict(), strict=False)
    return new
