"""Engines that run an ONNX graph: ONNX Runtime and OpenVINO, on the CPU."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np

from ..errors import ExportError

ENGINES = ('onnxruntime', 'openvino')


def check_engine(name: str) -> ModuleType:
    """The package of an engine.

    Raises:
        ExportError: the engine is unknown or not installed.
    """
    if name not in ENGINES:
        raise ExportError(f'engine {name!r} is unknown. Expected one of {", ".join(ENGINES)}')
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f'engine {name}: the package is not installed. Run `pip install {name}`') from error


def open_engine(name: str, path: Path, threads: int = 0, optimize: bool = True):
    """Load a graph into an engine.

    Args:
        name: one of :data:`ENGINES`.
        path: ONNX file.
        threads: 0 lets the engine choose.
        optimize: False lets ONNX Runtime run node by node what the graph says, without its integer kernels.

    Returns:
        A function from a float32 array (and, by name, further inputs) to the list of the graph's results.

    Raises:
        ExportError: the engine is unknown, not installed, or does not accept the graph.
    """
    package = check_engine(name)
    try:
        return _OPEN[name](package, Path(path), threads, optimize)
    except Exception as error:  # each engine has exception classes of its own, derived from Exception
        raise ExportError(f'{path}: {name} does not accept this graph: {str(error).splitlines()[0]}') from error


def _open_onnxruntime(package, path: Path, threads: int, optimize: bool):
    options = package.SessionOptions()
    if not optimize:
        options.graph_optimization_level = package.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = package.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return lambda x, **others: session.run(None, {'input': np.ascontiguousarray(x), **others})


def _open_openvino(package, path: Path, threads: int, optimize: bool):
    core = package.Core()
    config = {'INFERENCE_PRECISION_HINT': 'f32'}
    if threads:
        config['INFERENCE_NUM_THREADS'] = threads
    request = core.compile_model(core.read_model(str(path)), 'CPU', config).create_infer_request()

    def run(x, **others):
        results = request.infer({'input': np.ascontiguousarray(x), **others})
        return [np.array(results[i]) for i in range(len(results))]

    return run


_OPEN = {'onnxruntime': _open_onnxruntime, 'openvino': _open_openvino}
