"""From the head's outputs to detections (arXiv:2006.04388, section 3), for a whole batch at once."""
import torch

from fcos_core.modeling.rpn.fcos.inference import decode_boxes
from fcos_core.modeling.rpn.gfl.distances import expected_distances
from fcos_core.modeling.rpn.levels import flatten_levels, per_location
from fcos_core.modeling.rpn.losses import full_precision, take
from fcos_core.modeling.rpn.selection import DensePostProcessor, select_candidates, whole_sizes


class GFLPostProcessor(DensePostProcessor):
    """Turn predictions into BoxLists.

    Args:
        strides: L numbers, pixels.
        The others: see DensePostProcessor.
    """

    def __init__(self, strides, **options):
        super(GFLPostProcessor, self).__init__(**options)
        self.strides = list(strides)

    @torch.no_grad()
    def forward(self, box_cls, box_regression, anchors, image_sizes):
        """Detections of a batch.

        Args:
            box_cls: list of L tensors [N, C, H_l, W_l], logits.
            box_regression: list of L tensors [N, 4 * (n + 1), H_l, W_l], logits of the distances.
            anchors: list of L tensors [H_l, W_l, 1, 4] xyxy pixels; their centres are the locations.
            image_sizes: list of N (height, width) before padding.

        Returns:
            list of N BoxLists (xyxy, size (width, height)) with fields "labels" (int64, 1..C) and "scores" (class
            probabilities, which tell the quality as well), best first.
        """
        probabilities = self.probabilities(box_cls)
        counts = [level.numel() // 4 for level in anchors]
        alone = probabilities.new_ones(probabilities.shape[:2])  # nothing weighs the probabilities
        scores, index, classes = select_candidates(
            probabilities, alone, counts, self.pre_nms_thresh, self.pre_nms_top_n
        )
        anchors = torch.cat([level.reshape(-1, 4) for level in anchors]).to(probabilities.dtype)
        centers = ((anchors[:, :2] + anchors[:, 2:]) / 2)[index]
        strides = per_location(self.strides, counts, index.device, probabilities.dtype)[index][:, :, None]
        distances = expected_distances(take(full_precision(flatten_levels(box_regression)), index)) * strides
        return self.detections(decode_boxes(centers, distances), scores, classes, whole_sizes(image_sizes))


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
