"""How the engines round on a CPU, down to the last bit, which decides where a value lies in the middle of two codes.

Both engines compute in float32, but neither divides by the step as ``QuantizeLinear`` says. The formulas were found by
comparing codes on values near ties, with OpenVINO 2026.4 and ONNX Runtime 1.32
(``tests/deploy/engines/test_rounding.py``).
"""

from pathlib import Path

import torch
from torch import Tensor


def openvino_codes(x: Tensor, step: Tensor, limits: tuple[int, int], alone: bool = False) -> Tensor:
    """Input codes in OpenVINO, float32.

    It maps the 8-bit range of the step to 0 to 255, with a factor that is a quotient of two rounded numbers.

    Args:
        x: float32, any shape.
        step: float32 scalar.
        limits: lowest and highest code; signed where the lowest is negative.
        alone: whether the quantizer is not part of a convolution, a matrix product or a compiled subgraph of the
            engine, but a node of its own or in one with an addition. It then shifts signed values by 128 before it
            rounds, which costs their last bits.
    """
    zero = 128 if limits[0] < 0 else 0
    low, high = -zero * step, (255 - zero) * step
    factor = torch.full_like(step, 255) / (high - low)  # 255 / tensor would multiply with the reciprocal
    if not (alone and zero):
        return (x * factor).round_().clamp_(*limits)
    shift = 255 * -low / (high - low)
    x = x.clamp(limits[0] * step, limits[1] * step)
    scaled = torch.addcmul(shift.double(), x.double(), factor.double()).float()  # one rounding: a fused multiply-add
    return scaled.round_().sub_(zero).clamp_(*limits)


def written_scale(unit: Tensor, step: Tensor, refinement: int = 1) -> Tensor:
    """Scale of the weight codes in a graph, shape ``(O,)``, from what a unit of input times weight code is worth."""
    return (unit / step / refinement).float()


def without_products(scale: Tensor, offset: Tensor, refinement: int) -> Tensor:
    """Filters of which ONNX Runtime gets the bias alone: no int32 holds it in units of the scale, shape ``(O,)``."""
    return (scale == 0) | (offset.abs().double() * refinement > 2.0**30 * scale.abs().double())


def unit_of_bias(offset: Tensor) -> Tensor:
    """Unit of the bias of filters without scale: 2^-20 of it; 1 where it is 0."""
    return torch.where(offset == 0, torch.ones_like(offset), offset.abs() * 2**-20)


def openvino_alone(path: Path) -> set[str]:
    """Names of the quantizers' results (and others) in a graph that OpenVINO computes alone, as defined above."""
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(str(path)), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    names: set[str] = set()
    for node in model.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info['layerType'].astype(str) in _WITH_SHIFT:
            names.update(info['originalLayersNames'].astype(str).split(','))
    return names


_WITH_SHIFT = ('FakeQuantize', 'Eltwise')


def onnxruntime_result(total: Tensor, scale: Tensor, grid_scale: float, limits: tuple[int, int]) -> Tensor:
    """Codes (without their zero) of a result on an 8-bit grid in ONNX Runtime: sum and bias are rescaled at once.

    Args:
        total: sum of products plus bias, integers as float64, shape ``(N, O, ...)``.
        scale: of a unit of ``total``: input step times weight scale in float32, broadcasts against it.
        grid_scale: of the grid.
        limits: lowest and highest code.
    """
    factor = scale / torch.tensor(grid_scale)
    return (total.float() * factor).round_().clamp_(*limits)
