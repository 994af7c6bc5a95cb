"""From the head's outputs to detections; the scores are aligned with the quality of the boxes already."""
from fcos_core.modeling.rpn.selection import DistancePostProcessor


def make_tood_postprocessor(config):
    """The post-processor that `config` describes."""
    options = config.MODEL.TOOD
    return DistancePostProcessor(
        strides=options.FPN_STRIDES,
        pre_nms_thresh=options.INFERENCE_TH,
        pre_nms_top_n=options.PRE_NMS_TOP_N,
        nms_thresh=options.NMS_TH,
        fpn_post_nms_top_n=config.TEST.DETECTIONS_PER_IMG,
        min_size=0,
        num_classes=options.NUM_CLASSES,
        bbox_aug_enabled=config.TEST.BBOX_AUG.ENABLED,
        bbox_aug_vote=config.TEST.BBOX_AUG.VOTE,
    )
