"""Describe what each engine computes, and how its graphs look."""

from .base import Engine, engine_names, find_engine, register_engine, runner_of
from .onnxruntime import ONNXRuntime
from .openvino import OpenVINO
from .tensorrt import TensorRT

register_engine(OpenVINO())
register_engine(ONNXRuntime())
register_engine(TensorRT())

__all__ = ['Engine', 'engine_names', 'find_engine', 'register_engine', 'runner_of']
