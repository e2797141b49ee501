"""Refuses to load a quantized checkpoint into a float model, wherever mmengine loads one.

GDRQHook quantizes the model of a Runner. Code that builds a model and loads a checkpoint without running hooks
(``init_detector``, inferencers) would get the float model, and mmengine would only log the unexpected keys.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import mmengine.runner
from mmengine.runner import checkpoint
from torch import nn

from .convert import is_quantized_model, quantization_keys
from .errors import CheckpointError
from .stages import BUFFER
from .unwrap import unwrap

_QUANTIZER = re.compile(r'(.*?)\.?\b(?:weight|activation)_quantizer(?=\.format$)')


def check_quantized_as(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Raise where ``state`` has ranges of layers that are float in ``model``.

    Two cases are left alone: a model that :func:`mmgdrq.quantize` made, which compares all its ranges by itself; and
    one that mmengine initializes (``init_cfg``), where training starts from whatever fits.

    Raises:
        CheckpointError: says how to build the quantized model.
    """
    model = unwrap(model)
    initialized = hasattr(model, '_params_init_info')  # mmengine's mark, for as long as it initializes
    quantizers = {match[0]: match[1] for match in map(_QUANTIZER.match, quantization_keys(state)) if match}
    if not quantizers or initialized or any(hasattr(module, BUFFER) for module in model.modules()):
        return
    modules = dict(model.named_modules())
    in_float = [layer for path, layer in quantizers.items() if layer in modules and path not in modules]
    if in_float or not is_quantized_model(model):
        name = in_float[0] if in_float else next(iter(quantizers.values()))
        raise CheckpointError(
            f"checkpoint: it belongs to a quantized model, but '{name}' of the model that loads it is float, so the "
            'result would be something else than what was trained. GDRQHook quantizes the model of a Runner only. '
            'Where a model is built without one (init_detector, inferencers), use '
            "model=dict(type='mmgdrq.Quantized', base_type=..., quant=dict(...)), which loads the checkpoints of "
            'GDRQHook, or call mmgdrq.quantize(model, ...) before loading; with a Runner, use the config it was '
            'trained with'
        )


def _checked(load):
    @functools.wraps(load)
    def load_state_dict(module, state_dict, *args, **kwargs):
        check_quantized_as(module, state_dict)
        return load(module, state_dict, *args, **kwargs)

    return load_state_dict


mmengine.runner.load_state_dict = checkpoint.load_state_dict = _checked(checkpoint.load_state_dict)
