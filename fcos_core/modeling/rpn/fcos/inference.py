"""From the head's outputs to detections (arXiv:1904.01355, section 3.1), for a whole batch at once.

Shape letters as in levels.py; K is the number of candidates of an image, the same for all images of a batch.
"""

import torch

from fcos_core.modeling.rpn.levels import flatten_levels
from fcos_core.modeling.rpn.selection import (
    DensePostProcessor,
    dense_options,
    geometric_mean,
    select_candidates,
    whole_sizes,
)


def decode_boxes(locations, distances):
    """Boxes from locations [N, K, 2] and distances to left, top, right and bottom [N, K, 4]: [N, K, 4] xyxy."""
    return torch.cat((locations - distances[..., :2], locations + distances[..., 2:]), dim=2)


class FCOSPostProcessor(DensePostProcessor):
    """Turn predictions into BoxLists; see DensePostProcessor for the arguments."""

    @torch.no_grad()
    def forward(self, locations, box_cls, box_regression, centerness, image_sizes):
        """Detections of a batch.

        Args:
            locations: list of L tensors [R_l, 2] (x, y) pixels.
            box_cls: list of L tensors [N, C, H_l, W_l], logits.
            box_regression: list of L tensors [N, 4, H_l, W_l], pixels.
            centerness: list of L tensors [N, 1, H_l, W_l], logits.
            image_sizes: list of N (height, width) before padding.

        Returns:
            list of N BoxLists (xyxy, size (width, height)) with fields "labels" (int64, 1..C) and "scores"
            (sqrt(probability * centerness)), best first.
        """
        if self.goes_level_by_level(FCOSPostProcessor):
            maps = zip(locations, box_cls, box_regression, centerness)
            return self.level_by_level([level + (image_sizes,) for level in maps])
        candidates = self._candidates(locations, box_cls, box_regression, centerness)
        return self.detections(*candidates, whole_sizes(image_sizes))

    def forward_for_single_feature_map(self, locations, box_cls, box_regression, centerness, image_sizes):
        """Candidates of one level, before suppression: list of N BoxLists, as `forward`; arguments of that level."""
        candidates = self._candidates([locations], [box_cls], [box_regression], [centerness])
        return self.detections(*candidates, whole_sizes(image_sizes), suppress=False)

    def _candidates(self, locations, box_cls, box_regression, centerness):
        """Boxes [N, K, 4], scores [N, K] (negative: none) and classes [N, K] of the best predictions of each level."""
        probabilities = self.probabilities(box_cls)
        quality = self.probabilities(centerness).squeeze(2)
        counts = [len(level) for level in locations]
        scores, location, classes = select_candidates(
            probabilities, quality, counts, self.pre_nms_thresh, self.pre_nms_top_n
        )
        distances = flatten_levels(box_regression).to(probabilities.dtype)
        distances = distances.gather(1, location[:, :, None].expand(-1, -1, 4))
        boxes = decode_boxes(torch.cat(locations).to(distances.dtype)[location], distances)
        return boxes, geometric_mean(scores), classes


def make_fcos_postprocessor(config):
    """The post-processor that `config` describes."""
    return FCOSPostProcessor(**dense_options(config, config.MODEL.FCOS))
