"""From the head's outputs to detections (arXiv:2006.04388, section 3)."""
from fcos_core.modeling.rpn.gfl.distances import expected_distances
from fcos_core.modeling.rpn.selection import DistancePostProcessor


class GFLPostProcessor(DistancePostProcessor):
    """Turn predictions into BoxLists; see DistancePostProcessor for the arguments."""

    def distances(self, regression):
        """Means of the distributions: logits [N, K, 4 * (n + 1)] -> [N, K, 4]."""
        return expected_distances(regression)


def make_gfl_postprocessor(config):
    """The post-processor that `config` describes."""
    options = config.MODEL.GFL
    return GFLPostProcessor(
        strides=options.ANCHOR_STRIDES,
        pre_nms_thresh=options.INFERENCE_TH,
        pre_nms_top_n=options.PRE_NMS_TOP_N,
        nms_thresh=options.NMS_TH,
        fpn_post_nms_top_n=config.TEST.DETECTIONS_PER_IMG,
        min_size=0,
        num_classes=options.NUM_CLASSES,
        bbox_aug_enabled=config.TEST.BBOX_AUG.ENABLED,
        bbox_aug_vote=config.TEST.BBOX_AUG.VOTE,
    )
