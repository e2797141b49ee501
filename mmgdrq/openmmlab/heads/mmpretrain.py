"""The prediction layers of mmpretrain, by the class of the head."""

from ...planning.known_heads import register_heads

HEADS = {
    'BEiTV1Head': ['cls_head'],
    'BEiTV2Head': ['cls_head'],
    'CSRAClsHead': ['csra_heads.*'],
    'ConformerHead': ['conv_cls_head', 'trans_cls_head'],
    'DeiTClsHead': ['layers.head', 'layers.head_dist'],
    'EfficientFormerClsHead': ['head', 'dist_head'],
    'ITMHead': ['fc'],
    'LeViTClsHead': ['head', 'head_dist'],
    'LinearClsHead': ['fc'],
    'MultiLabelLinearClsHead': ['fc'],
    'StackedLinearClsHead': ['layers'],
    'VigClsHead': ['fc2'],
    'VisionTransformerClsHead': ['layers.head'],
    'iTPNClipHead': ['cls_head'],
}

register_heads(HEADS)
