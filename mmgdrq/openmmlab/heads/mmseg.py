"""The prediction layers of mmseg, by the class of the head."""

from ...planning.known_heads import register_heads

HEADS = {
    'BaseDecodeHead': ['conv_seg'],
    'DAHead': ['conv_seg', 'pam_conv_seg', 'cam_conv_seg'],
    'DDRHead': ['conv_seg', 'aux_cls_seg'],
    'EncHead': ['conv_seg', 'se_layer'],
    'KernelUpdateHead': ['fc_mask'],
    'PIDHead': ['conv_seg', 'p_cls_seg', 'd_cls_seg'],
    'PointHead': ['fc_seg'],
    'SegmenterMaskTransformerHead': ['patch_proj', 'classes_proj'],
}

register_heads(HEADS)
