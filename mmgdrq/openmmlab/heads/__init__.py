"""What is known of the heads of OpenMMLab, one file a code base; importing it registers them."""

from . import dense_parts, mmdet, mmpose, mmpretrain, mmseg, mmyolo

__all__ = ['dense_parts', 'mmdet', 'mmpose', 'mmpretrain', 'mmseg', 'mmyolo']
