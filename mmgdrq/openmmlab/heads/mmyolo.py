"""The prediction layers of mmyolo, by the class of the head."""

from ...planning.known_heads import register_heads

HEADS = {
    'PPYOLOEHeadModule': ['cls_preds.*', 'reg_preds.*'],
    'RTMDetHeadModule': ['rtm_cls', 'rtm_reg'],
    'RTMDetSepBNHeadModule': ['rtm_cls', 'rtm_reg', 'rtm_cls.*', 'rtm_reg.*'],
    'YOLOXHeadModule': ['multi_level_conv_cls.*', 'multi_level_conv_reg.*', 'multi_level_conv_obj.*'],
    'YOLOv5HeadModule': ['convs_pred.*'],
    'YOLOv5InsHeadModule': ['convs_pred.*', 'proto_preds'],
    'YOLOv6HeadModule': ['cls_preds.*', 'reg_preds.*'],
    'YOLOv7HeadModule': ['convs_pred.*'],
    'YOLOv7p6HeadModule': ['main_convs_pred.*', 'aux_convs_pred.*'],
    'YOLOv8HeadModule': ['cls_preds.*', 'reg_preds.*'],
}

register_heads(HEADS)
