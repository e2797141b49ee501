"""Describe OpenVINO on a CPU: a float ``Clip`` before ``QuantizeLinear``, a float bias, float outputs.

The formulas were found by comparing codes on values near ties, with OpenVINO 2026.4
(``tests/deploy/engines/test_openvino.py``).
"""

from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

from .base import Engine, Requantization
from .block import SIGNED_ZERO, Block, written_scale

SHIFTING = ('FakeQuantize', 'Eltwise', 'Interpolate')
"""Kernels whose quantizer shifts signed values by 128 before it rounds."""


class OpenVINO(Engine):
    """OpenVINO on a CPU: it computes what the quantized model computes."""

    name = 'openvino'
    max_distance = 1e-3
    suppresses_equal = True

    def codes(
        self, x: Tensor, step: Tensor, zero: int, limits: tuple[int, int], kernel: Optional[str] = None
    ) -> Tensor:
        """Map the 8-bit range of the step to 0 to 255, with a factor that is a quotient of two rounded numbers.

        In a kernel of :data:`SHIFTING`, the shift costs the last bits of signed values.
        """
        limits = (limits[0] - zero, limits[1] - zero)
        shifted = SIGNED_ZERO if limits[0] < 0 else 0
        low, high = -shifted * step, (255 - shifted) * step
        factor = torch.full_like(step, 255) / (high - low)  # 255 / tensor would multiply with the reciprocal
        if not (shifted and kernel in SHIFTING):
            return (x * factor).round_().clamp_(*limits)
        shift = 255 * -low / (high - low)
        x = x.clamp(limits[0] * step, limits[1] * step)
        # one rounding, as a fused multiply-add
        scaled = torch.addcmul(shift.double(), x.double(), factor.double()).float()
        return scaled.round_().sub_(shifted).clamp_(*limits)

    def compute(self, block: Block, x: Tensor, output: Requantization, kernel: Optional[str] = None) -> Tensor:
        """The output with the scale that the engine finds in the graph."""
        total, scale = block.multiply(self.encode(block, x, kernel)), block.scale
        if block.is_integer:
            scale = torch.where(scale == 0, 0.0, block.step * written_scale(block.unit, block.step))
        return total * block.per_filter(scale) + block.per_filter(block.offset)

    def quantizer_kernels(self, path: Path) -> dict[str, str]:
        """Name of a node's output -> type of the kernel that the engine made of it."""
        names: dict[str, str] = {}
        for kind, _, layers in _kernels(path):
            names.update(dict.fromkeys(layers.split(','), kind))
        return names

    def count_kernels(self, path: Path) -> tuple[int, int]:
        """Number of convolutions and matrix products that are computed in integers, and in float."""
        kinds = ('Convolution', 'FullyConnected', 'MatMul')
        precisions = [precision.lower() for kind, precision, _ in _kernels(path) if kind in kinds]
        integer = sum(precision in ('i8', 'u8') for precision in precisions)
        return integer, len(precisions) - integer


def _kernels(path: Path) -> list[tuple[str, str, str]]:
    """Type, precision and original layers of every kernel in the compiled graph."""
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(str(path)), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    keys = ('layerType', 'runtimePrecision', 'originalLayersNames')
    found = []
    for node in model.get_runtime_model().get_ops():
        info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items() if key in keys}
        kind, precision, layers = (info.get(key, '') for key in keys)
        found.append((kind, precision, layers))
    return found
