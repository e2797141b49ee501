"""Engines that run an ONNX graph: ONNX Runtime and OpenVINO, on the CPU."""

import importlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Optional, Union

import numpy as np

from .errors import ExportError, InputError

ENGINES = ('onnxruntime', 'openvino')
REFERENCE = 'onnxruntime'
"""Engine that checks the graphs of profiles whose own engine cannot run here."""
ONNXRUNTIME = dict(providers=['CPUExecutionProvider'], disabled_optimizers=['WeightBiasQuantization'])
"""Of a session: the left out optimizer makes 8-bit weights of float ones between two quantized tensors."""
Run = Callable[..., list[np.ndarray]]


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


def is_installed(name: str) -> bool:
    """Whether an engine of this name is known and installed."""
    try:
        check_engine(name)
    except ExportError:
        return False
    return True


def open_engine(name: str, path: Path, threads: int = 0, optimize: bool = True):
    """Load a graph into an engine.

    Args:
        name: one of :data:`ENGINES`.
        path: ONNX file.
        threads: 0 lets the engine choose.
        optimize: False lets ONNX Runtime run node by node what the graph says, without its integer kernels.

    Returns:
        A function from a float32 array (and, by name, further inputs) to the list of the graph's results. A graph
        for one image runs several one by one. Threads may share the function. It raises ``InputError`` for sizes that
        the graph does not take, and ``ExportError`` where the engine fails.

    Raises:
        ExportError: the engine is unknown, not installed, or does not accept the graph.
    """
    package = check_engine(name)
    try:
        run, shape = _OPEN[name](package, Path(path), threads, optimize)
    except Exception as error:  # each engine has exception classes of its own, derived from Exception
        raise ExportError(f'{path}: {name} does not accept this graph: {str(error).splitlines()[0]}') from error
    return _with_shape(run, shape, path)


def _with_shape(run: Run, shape: Sequence[Optional[int]], path: Path) -> Run:
    """``run`` for inputs that fit ``shape``, where None stands for any size."""

    def call(x: np.ndarray, **others: np.ndarray) -> list[np.ndarray]:
        if _fits(x.shape, shape):
            return _run(run, path, x, others)
        if not others and shape[0] == 1 and _fits(x.shape[1:], shape[1:]):
            results = [_run(run, path, x[i : i + 1], others) for i in range(len(x))]
            return [np.concatenate(parts) for parts in zip(*results)]
        expected = ', '.join('any' if size is None else str(size) for size in shape)
        raise InputError(
            f'{path}: an input of shape {x.shape}; the graph takes ({expected}) only, as an operator in it has the '
            "size of the sample images as a constant. Resize or pad the images to it, or use engine='torch'"
        )

    return call


def _run(run: Run, path: Path, x: np.ndarray, others: dict[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return run(x, **others)
    except Exception as error:  # as above
        raise ExportError(f'{path}: fails on an input of shape {x.shape}: {str(error).splitlines()[0]}') from error


def _fits(found: Sequence[int], shape: Sequence[Optional[int]]) -> bool:
    return len(found) == len(shape) and all(size in (None, n) for n, size in zip(found, shape))


def _open_onnxruntime(package, path: Path, threads: int, optimize: bool):
    options = package.SessionOptions()
    if not optimize:
        options.graph_optimization_level = package.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised
    session = package.InferenceSession(str(path), options, **ONNXRUNTIME)
    shapes = {value.name: value.shape for value in session.get_inputs()}
    shape = [size if isinstance(size, int) else None for size in shapes['input']]
    return lambda x, **others: session.run(None, {'input': np.ascontiguousarray(x), **others}), shape


def _open_openvino(package, path: Path, threads: int, optimize: bool):
    core = package.Core()
    config: dict[str, Union[str, int]] = {'INFERENCE_PRECISION_HINT': 'f32'}
    if threads:
        config['INFERENCE_NUM_THREADS'] = threads
    compiled = core.compile_model(core.read_model(str(path)), 'CPU', config)
    shape = [size.get_length() if size.is_static else None for size in compiled.input('input').partial_shape]
    request, turn = compiled.create_infer_request(), threading.Lock()

    def run(x, **others):
        with turn:  # the results lie in the request until its next call
            results = request.infer({'input': np.ascontiguousarray(x), **others})
            return [np.array(results[i]) for i in range(len(results))]

    return run, shape


_OPEN = {'onnxruntime': _open_onnxruntime, 'openvino': _open_openvino}
