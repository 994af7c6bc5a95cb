"""From the head's outputs to detections (arXiv:1912.02424, section 3), for a whole batch at once.

Shape letters as in levels.py; K is the number of candidates of an image, the same for all images of a batch.
"""

import torch

from fcos_core.modeling.rpn.anchor_generator import as_levels, level_boxlists, level_of_boxlists
from fcos_core.modeling.rpn.selection import (
    DensePostProcessor,
    decode_selected,
    dense_options,
    geometric_mean,
    select_candidates,
    whole_sizes,
)


class ATSSPostProcessor(DensePostProcessor):
    """Turn predictions into BoxLists.

    Args:
        box_coder: decodes boxes relative to anchors.
        The others: see DensePostProcessor.
    """

    def __init__(
        self,
        pre_nms_thresh,
        pre_nms_top_n,
        nms_thresh,
        fpn_post_nms_top_n,
        min_size,
        num_classes,
        box_coder,
        bbox_aug_enabled=False,
        bbox_aug_vote=False,
    ):
        super(ATSSPostProcessor, self).__init__(
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
    def forward(self, box_cls, box_regression, centerness, anchors, image_sizes=None):
        """Detections of a batch.

        Args:
            box_cls: list of L tensors [N, A * C, H_l, W_l], logits.
            box_regression: list of L tensors [N, A * 4, H_l, W_l], encoded boxes.
            centerness: list of L tensors [N, A, H_l, W_l], logits.
            anchors: list of L tensors [H_l, W_l, A, 4] xyxy pixels, the same for all images; or list of N lists of L
                BoxLists.
            image_sizes: list of N (height, width) before padding; None: those of the BoxLists.

        Returns:
            list of N BoxLists (xyxy, size (width, height)) with fields "labels" (int64, 1..C) and "scores"
            (sqrt(probability * centerness)), best first.
        """
        anchors, image_sizes = as_levels(anchors, box_regression[0].shape[1] // 4, image_sizes)
        if self.goes_level_by_level(ATSSPostProcessor):
            boxlists = [level_boxlists(level, whole_sizes(image_sizes)) for level in anchors]
            return self.level_by_level(zip(box_cls, box_regression, centerness, boxlists))
        candidates = self._candidates(box_cls, box_regression, centerness, anchors)
        return self.detections(*candidates, whole_sizes(image_sizes))

    def forward_for_single_feature_map(self, box_cls, box_regression, centerness, anchors):
        """Candidates of one level, before suppression: list of N BoxLists, as `forward`.

        Args:
            box_cls, box_regression, centerness: the maps of that level.
            anchors: N BoxLists, the same anchors for all images.
        """
        level, image_sizes = level_of_boxlists(anchors, box_regression.shape[1] // 4)
        candidates = self._candidates([box_cls], [box_regression], [centerness], [level])
        return self.detections(*candidates, whole_sizes(image_sizes), suppress=False)

    def _candidates(self, box_cls, box_regression, centerness, anchors):
        """Boxes [N, K, 4], scores [N, K] (negative: none) and classes [N, K] of the best predictions of each level."""
        per_location = anchors[0].shape[2]
        probabilities = self.probabilities(box_cls, per_location)
        quality = self.probabilities(centerness, per_location).squeeze(2)
        counts = [level.numel() // 4 for level in anchors]
        scores, index, classes = select_candidates(
            probabilities, quality, counts, self.pre_nms_thresh, self.pre_nms_top_n
        )
        boxes = decode_selected(self.box_coder, box_regression, anchors, index, probabilities.dtype)
        return boxes, geometric_mean(scores), classes


def make_atss_postprocessor(config, box_coder):
    """The post-processor that `config` describes."""
    return ATSSPostProcessor(box_coder=box_coder, **dense_options(config, config.MODEL.ATSS))
