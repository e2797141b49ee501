"""How many quantized layers an engine runs as integer kernels: python benchmarks/deployment.py DIR

DIR is what `tools/deploy.py --export` wrote. The counts come from the graphs that the engines have optimized.
"""

import argparse
import json
import tempfile
from pathlib import Path

INTEGER = ('QLinearConv', 'QGemm', 'QLinearMatMul', 'MatMulInteger', 'ConvInteger', 'QLinearGemm')
FLOAT = ('Conv', 'FusedConv', 'Gemm', 'MatMul', 'FusedMatMul', 'FusedGemm', 'DynamicQuantizeMatMul')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('directory', type=Path)
    args = parser.parse_args()
    graphs = json.loads((args.directory / 'manifest.json').read_text()).get('graphs') or {}
    print(f'{"engine":12} {"graph":12} {"layers":>6} {"integer":>8} {"float":>6}')
    for engine, parts in graphs.items():
        for part, entry in parts.items():
            integer, floating = COUNT[engine](args.directory / engine / entry['file'])
            print(f'{engine:12} {part:12} {entry["blocks"]:6} {integer:8} {floating:6}')


def count_onnxruntime(path: Path) -> tuple[int, int]:
    """Integer and float convolutions and matrix products of the graph that ONNX Runtime has optimized."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder, 'optimized.onnx'))
        onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    return sum(kind in INTEGER for kind in kinds), sum(kind in FLOAT for kind in kinds)


def count_openvino(path: Path) -> tuple[int, int]:
    """Integer and float convolutions and matrix products of the network that OpenVINO has compiled."""
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(str(path)), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    precisions = []
    for node in model.get_runtime_model().get_ops():
        info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items() if key in KEYS}
        if info.get('layerType') in ('Convolution', 'FullyConnected', 'MatMul'):
            precisions.append(info.get('runtimePrecision', ''))
    integer = sum(precision.lower() in ('i8', 'u8') for precision in precisions)
    return integer, len(precisions) - integer


KEYS = ('layerType', 'runtimePrecision')
COUNT = {'onnxruntime': count_onnxruntime, 'openvino': count_openvino}

if __name__ == '__main__':
    main()
