"""The prediction layers of mmpose, by the class of the head."""

from ...planning.known_heads import register_heads

HEADS = {
    'CPMHead': ['multi_final_layers.*'],
    'HeatmapHead': ['final_layer'],
    'IntegralRegressionHead': ['final_layer'],
    'MSPNHead': ['multi_final_layers.*'],
    'RLEHead': ['fc'],
    'RTMCCHead': ['cls_x', 'cls_y'],
    'RTMWHead': ['cls_x', 'cls_y'],
    'RegressionHead': ['fc'],
    'SimCCHead': ['mlp_head_x', 'mlp_head_y'],
    'TemporalRegressionHead': ['conv'],
    'TrajectoryRegressionHead': ['conv'],
    'ViPNASHead': ['final_layer'],
    'YOLOXPoseHeadModule': ['out_cls.*', 'out_bbox.*', 'out_obj.*', 'out_kpt.*', 'out_kpt_vis.*'],
}

register_heads(HEADS)
