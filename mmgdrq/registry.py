"""mmgdrq's registries: children of mmengine's, found as ``mmgdrq.X`` from any scope."""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmgdrq', locations=['mmgdrq.openmmlab.builder'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmgdrq', locations=['mmgdrq.openmmlab.hooks'])
