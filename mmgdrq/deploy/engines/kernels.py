"""How many layers an engine runs as integer kernels, counted in the graph that the engine has optimized."""

import tempfile
from pathlib import Path

from mmgdrq_runtime.engines import ONNXRUNTIME

from ...errors import ExportError

INTEGER = ('QLinearConv', 'QGemm', 'QLinearMatMul', 'MatMulInteger', 'MatMulIntegerToFloat', 'ConvInteger')
FLOAT = ('Conv', 'FusedConv', 'Gemm', 'MatMul', 'FusedMatMul', 'FusedGemm')


def count_kernels(engine: str, path: Path) -> tuple[int, int]:
    """Number of convolutions and matrix products that are computed in integers, and in float.

    Args:
        engine: ``'onnxruntime'`` or ``'openvino'``.
        path: ONNX file.

    Raises:
        ExportError: the engine is unknown.
    """
    if engine not in _COUNT:
        raise ExportError(f'engine {engine!r} is unknown. Expected one of {", ".join(_COUNT)}')
    return _COUNT[engine](path)


def _count_onnxruntime(path: Path) -> tuple[int, int]:
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder, 'optimized.onnx'))
        onnxruntime.InferenceSession(str(path), options, **ONNXRUNTIME)
        kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    return sum(kind in INTEGER for kind in kinds), sum(kind in FLOAT for kind in kinds)


def _count_openvino(path: Path) -> tuple[int, int]:
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(str(path)), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    precisions = []
    for node in model.get_runtime_model().get_ops():
        info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items() if key in _KEYS}
        if info.get('layerType') in ('Convolution', 'FullyConnected', 'MatMul'):
            precisions.append(info.get('runtimePrecision', '').lower())
    integer = sum(precision in ('i8', 'u8') for precision in precisions)
    return integer, len(precisions) - integer


_KEYS = ('layerType', 'runtimePrecision')
_COUNT = {'onnxruntime': _count_onnxruntime, 'openvino': _count_openvino}
