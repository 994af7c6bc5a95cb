"""From the head's outputs to detections (arXiv:1708.02002, section 4.1), for a whole batch at once."""

import torch

from fcos_core.modeling.rpn.anchor_generator import as_levels, level_boxlists, level_of_boxlists
from fcos_core.modeling.rpn.selection import (
    DensePostProcessor,
    decode_selected,
    dense_options,
    select_candidates,
    whole_sizes,
)


class RetinaNetPostProcessor(DensePostProcessor):
    """Turn predictions into BoxLists.

    Args:
        box_coder: decodes boxes relative to anchors.
        The others: see DensePostProcessor.

    Note:
        An IoU equal to nms_thresh does not suppress, as in the predecessor's GPU code, which gave the published
        results; its CPU code suppressed.
    """

    def __init__(
        self,
        pre_nms_thresh,
        pre_nms_top_n,
        nms_thresh,
        fpn_post_nms_top_n,
        min_size,
        num_classes,
        box_coder=None,
        bbox_aug_enabled=False,
        bbox_aug_vote=False,
    ):
        super(RetinaNetPostProcessor, self).__init__(
            pre_nms_thresh,
            pre_nms_top_n,
            nms_thresh,
            fpn_post_nms_top_n,
            min_size,
            num_classes,
            bbox_aug_enabled,
            bbox_aug_vote,
        )
        self.box_coder = box_coder

    @torch.no_grad()
    def forward(self, anchors, box_cls, box_regression, image_sizes=None):
        """Detections of a batch.

        Args:
            anchors: list of L tensors [H_l, W_l, A, 4] xyxy pixels, the same for all images; or list of N lists of L
                BoxLists.
            box_cls: list of L tensors [N, A * C, H_l, W_l], logits.
            box_regression: list of L tensors [N, A * 4, H_l, W_l], encoded boxes.
            image_sizes: list of N (height, width) before padding; None: those of the BoxLists.

        Returns:
            list of N BoxLists (xyxy, size (width, height)) with fields "labels" (int64, 1..C) and "scores" (class
            probabilities), best first.
        """
        anchors, image_sizes = as_levels(anchors, box_regression[0].shape[1] // 4, image_sizes)
        if self.goes_level_by_level(RetinaNetPostProcessor):
            boxlists = [level_boxlists(level, whole_sizes(image_sizes)) for level in anchors]
            return self.level_by_level(zip(boxlists, box_cls, box_regression))
        return self.detections(*self._candidates(anchors, box_cls, box_regression), whole_sizes(image_sizes))

    def forward_for_single_feature_map(self, anchors, box_cls, box_regression):
        """Candidates of one level, before suppression: list of N BoxLists, as `forward`.

        Args:
            anchors: N BoxLists, the same anchors for all images.
            box_cls, box_regression: the maps of that level.
        """
        level, image_sizes = level_of_boxlists(anchors, box_regression.shape[1] // 4)
        candidates = self._candidates([level], [box_cls], [box_regression])
        return self.detections(*candidates, whole_sizes(image_sizes), suppress=False)

    def _candidates(self, anchors, box_cls, box_regression):
        """Boxes [N, K, 4], scores [N, K] (negative: none) and classes [N, K] of the best predictions of each level."""
        probabilities = self.probabilities(box_cls, anchors[0].shape[2])
        counts = [level.numel() // 4 for level in anchors]
        alone = probabilities.new_ones(probabilities.shape[:2])  # nothing weighs the probabilities
        scores, index, classes = select_candidates(
            probabilities, alone, counts, self.pre_nms_thresh, self.pre_nms_top_n
        )
        boxes = decode_selected(self.box_coder, box_regression, anchors, index, probabilities.dtype)
        return boxes, scores, classes

    def add_gt_proposals(self, proposals, targets):
        """The proposals as they are: nothing learns from the detections of a dense head."""
        return proposals


def make_retinanet_postprocessor(config, rpn_box_coder, is_train=False):
    """The post-processor that `config` describes; is_train makes no difference."""
    return RetinaNetPostProcessor(box_coder=rpn_box_coder, **dense_options(config, config.MODEL.RETINANET))
