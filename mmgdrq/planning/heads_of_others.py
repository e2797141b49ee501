"""The prediction layers of torchvision, timm, and of DETR and YOLO in code bases of their own."""

from .known_heads import register_heads

DETR = ['class_embed', 'bbox_embed', 'class_embed.*', 'bbox_embed.*']
"""One head, or a list with one for each decoder layer; a head is a layer or a module that ends with one."""

HEADS = {
    # torchvision: names with the package, as other libraries have heads of the same name
    'torchvision.FCOSClassificationHead': ['cls_logits'],
    'torchvision.FCOSRegressionHead': ['bbox_reg', 'bbox_ctrness'],
    'torchvision.FastRCNNPredictor': ['cls_score', 'bbox_pred'],
    'torchvision.KeypointRCNNPredictor': ['kps_score_lowres'],
    'torchvision.LRASPPHead': ['low_classifier', 'high_classifier'],
    'torchvision.MaskRCNNPredictor': ['mask_fcn_logits'],
    'torchvision.RPNHead': ['cls_logits', 'bbox_pred'],
    'torchvision.RetinaNetClassificationHead': ['cls_logits'],
    'torchvision.RetinaNetRegressionHead': ['bbox_reg'],
    'torchvision.SSDScoringHead': ['module_list.*'],
    # timm
    'ClassifierHead': ['fc'],
    'NormMlpClassifierHead': ['fc'],
    'CrossVit': ['head.*'],
    # DETR of Facebook, of its followers, and of transformers
    'ConditionalDETR': DETR,
    'ConditionalDetrForObjectDetection': ['class_labels_classifier', 'bbox_predictor'],
    'DABDETR': DETR,
    'DETR': DETR,
    'DeformableDETR': DETR,
    'DeformableDetrForObjectDetection': DETR,
    'DetrForObjectDetection': ['class_labels_classifier', 'bbox_predictor'],
    'DINO': [*DETR, 'transformer.enc_out_class_embed', 'transformer.enc_out_bbox_embed'],
    'RTDETRTransformer': ['dec_score_head.*', 'dec_bbox_head.*', 'enc_score_head', 'enc_bbox_head'],
    # ultralytics: the branches of all levels; the fixed projection (dfl) is no prediction layer
    'Classify': ['linear'],
    'Detect': ['cv2.*', 'cv3.*', 'one2one_cv2.*', 'one2one_cv3.*', 'm.*'],
    'OBB': ['cv2.*', 'cv3.*', 'cv4.*'],
    'Pose': ['cv2.*', 'cv3.*', 'cv4.*'],
    'Segment': ['cv2.*', 'cv3.*', 'cv4.*', 'proto.cv3'],
}

register_heads(HEADS)
