"""Every change that mmgdrq makes to other packages, each with the fault that it works around.

- mmengine 0.10: ``load_state_dict`` only logs unexpected keys, so that a quantized checkpoint would be loaded into a
  float model silently. It refuses that here, wherever mmengine loads one.
- torch 2.6 and newer with mmengine 0.10: ``weights_only`` refuses mmengine's own checkpoints. What they hold is added
  to torch's allow-list, see :mod:`.checkpoint_types`.
- mmdet 3.3.0: ``SSDHead`` cannot predict; ``mmgdrq.SSDHead`` can, see :mod:`.ssd_head`.

GDRQHook quantizes the model of a Runner. Code that builds a model and loads a checkpoint without running hooks
(``init_detector``, inferencers) would get the float model, and mmengine would only log the unexpected keys.
"""

import functools

import mmengine.runner
from mmengine.runner import checkpoint

from ..quantized_model.loading import check_quantized_as
from .checkpoint_types import allow_mmengine_checkpoints
from .wrappers import unwrap

INITIALIZED = '_params_init_info'
"""Attribute by which mmengine marks a model, for as long as it initializes its weights."""


def _checked(load):
    @functools.wraps(load)
    def load_state_dict(module, state_dict, *args, **kwargs):
        check_quantized_as(unwrap(module), state_dict, initialized=hasattr(unwrap(module), INITIALIZED))
        return load(module, state_dict, *args, **kwargs)

    return load_state_dict


allow_mmengine_checkpoints()
mmengine.runner.load_state_dict = checkpoint.load_state_dict = _checked(checkpoint.load_state_dict)
