"""The layer on top: everything that imports mmengine, mmcv or a package of OpenMMLab.

Importing it registers the hooks, the builder, the layers and the heads of mmgdrq with mmengine.
"""

from . import builder, heads, hooks, ssd_head, upstream

__all__ = ['builder', 'heads', 'hooks', 'ssd_head', 'upstream']
