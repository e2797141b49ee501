"""Check which state dicts fit a quantized model."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Callable

from torch import nn

from ..errors import CheckpointError, QuantizationError
from ..layers.quantizers.quantizer import Quantizer
from ..layers.walk import all_modules, is_quantized_model
from .state import STAGE, is_root

_QUANTIZER_KEYS = ('.weight_quantizer.', '.activation_quantizer.', '.engine_result.')


_ADDED_LATER = '.engine_result.'
"""Quantizers that a model may get after it was trained without them."""


def check_saves_ranges(model: nn.Module) -> None:
    """Refuse to train a model whose ``state_dict()`` leaves out ranges, so that no checkpoint would hold them.

    Raises:
        QuantizationError: names the first one that is left out.
    """
    saved = model.state_dict()
    left_out = [
        key
        for name, module in model.named_modules()
        if isinstance(module, Quantizer)
        for key in module.state_dict(prefix=f'{name}.')
        if key not in saved
    ]
    if left_out:
        raise QuantizationError(
            f'the state_dict() of {type(model).__name__} leaves out {len(left_out)} ranges of quantized layers, such '
            f'as {left_out[0]}, so that a checkpoint of this training could not be evaluated or resumed (LoRAModel of '
            'mmpretrain saves its own weights alone). Quantize the model without what filters its state_dict(), for '
            'example after its adapters are merged into the weights'
        )


def check_at_load(model: nn.Module) -> None:
    """Let a quantized model refuse state dicts whose quantization state is not its own, and take float weights."""
    _before_load(model, _check_state)
    model.register_load_state_dict_post_hook(_allow_float_weights)


def _before_load(model: nn.Module, check: Callable) -> None:
    if hasattr(model, 'register_load_state_dict_pre_hook'):
        model.register_load_state_dict_pre_hook(check)
    else:  # torch before 2.5 has it under this name only
        model._register_load_state_dict_pre_hook(check, with_module=True)


def quantization_keys(keys: Iterable[str], prefix: str = '') -> list[str]:
    """Those of the keys of a state dict that belong to quantizers."""
    return [key for key in keys if key.startswith(prefix) and any(part in '.' + key for part in _QUANTIZER_KEYS)]


def _check_state(model, state_dict, prefix, *_) -> None:
    """A state dict has no quantization state at all (float weights), or exactly the model's."""
    found = set(quantization_keys(state_dict, prefix))
    if not found:
        return
    expected = set(quantization_keys(model.state_dict(prefix=prefix)))
    if not any(_ADDED_LATER in key for key in found):
        expected = {key for key in expected if _ADDED_LATER not in key}
    if found == expected:
        return
    missing, extra = sorted(expected - found), sorted(found - expected)
    text = []
    if missing:
        text.append(f'{len(missing)} ranges of the model are missing, such as {missing[0]}')
    if extra:
        text.append(f'{len(extra)} ranges belong to layers that the config does not quantize so, such as {extra[0]}')
    raise CheckpointError(
        f'checkpoint: its quantization state does not fit the model: {"; ".join(text)}. Use the config it '
        'was trained with, or start from its float weights'
    )


def _allow_float_weights(model: nn.Module, incompatible_keys) -> None:
    """Float weights fit a quantized model, with ``strict=True`` too: they have no quantization state to miss."""
    missing = incompatible_keys.missing_keys
    added = set(quantization_keys(missing))  # all of them or none: _check_state has refused the rest
    if added:
        missing[:] = [key for key in missing if key not in added and key.rpartition('.')[2] != STAGE]


_QUANTIZER = re.compile(r'(.*?)\.?\b(?:weight|activation)_quantizer(?=\.format$)')


def check_quantized_as(model: nn.Module, state: Mapping[str, Any], initialized: bool = False) -> None:
    """Raise where ``state`` has ranges of layers that are float in ``model``.

    Two cases are left alone: a model that :func:`mmgdrq.quantize` made, which compares all its ranges by itself; and
    one that is being initialized (``init_cfg`` of mmengine), where training starts from whatever fits.

    Args:
        model: the model itself, outside of wrappers.
        state: a state dict.
        initialized: whether the model is being initialized.

    Raises:
        CheckpointError: says how to build the quantized model.
    """
    quantizers = {match[0]: match[1] for match in map(_QUANTIZER.match, quantization_keys(state)) if match}
    if not quantizers or initialized or any(map(is_root, all_modules(model))):
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
