"""What is known of the heads of OpenMMLab, one file a code base; importing it registers them."""

from . import mmdet, mmpose, mmpretrain, mmseg, mmyolo

__all__ = ['mmdet', 'mmpose', 'mmpretrain', 'mmseg', 'mmyolo']
