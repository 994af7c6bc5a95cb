"""Matching of anchors to boxes by IoU.

Shape letters: N images, R anchors, M boxes of the image that has most.
"""
import torch

from fcos_core.modeling.rpn.levels import box_chunks
from fcos_core.structures import box_ops


class Matcher(object):
    """Give each anchor the box of highest IoU, if that is high enough.

    Args:
        high_threshold: at least this: a match.
        low_threshold: below this: background; between the two: neither.
        allow_low_quality_matches: an anchor that has, among all anchors, the highest IoU with some box is a match too,
            whatever the IoU.  Legacy: it is matched to the box that it overlaps most, which may be another one.

    Reference: Ren et al., Faster R-CNN, arXiv:1506.01497, section 3.1.2.
    """

    BELOW_LOW_THRESHOLD = -1
    BETWEEN_THRESHOLDS = -2

    def __init__(self, high_threshold, low_threshold, allow_low_quality_matches=False):
        if low_threshold > high_threshold:
            raise ValueError(
                "Matcher: expected low_threshold not above high_threshold, got {} and {}; exchange them".format(
                    low_threshold, high_threshold
                )
            )
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix):
        """Match the anchors of one image.

        Args:
            match_quality_matrix: [M, R] IoU of each box with each anchor.

        Returns:
            [R] int64: index of the box, BELOW_LOW_THRESHOLD or BETWEEN_THRESHOLDS.  Without boxes, all are below.
        """
        num_boxes, num_anchors = match_quality_matrix.shape
        if num_boxes == 0:
            shape = (num_anchors,)
            return torch.full(shape, self.BELOW_LOW_THRESHOLD, dtype=torch.int64, device=match_quality_matrix.device)
        quality, index = match_quality_matrix.max(dim=0)
        return self._decide(quality, index, _best_of_some_box(match_quality_matrix.t()))

    @torch.no_grad()
    def match(self, anchors, boxes, valid):
        """Match the anchors of a batch; memory is bounded whatever the number of boxes.

        Args:
            anchors: [R, 4] xyxy pixels, the same for all images.
            boxes: [N, M, 4] xyxy pixels, padded.
            valid: bool [N, M], False for padding.

        Returns:
            [N, R] int64, see `__call__`.
        """
        num_images, num_anchors = len(boxes), len(anchors)
        quality = anchors.new_full((num_images, num_anchors), -1.0)
        index = torch.zeros((num_images, num_anchors), dtype=torch.int64, device=anchors.device)
        low_quality = torch.zeros_like(index, dtype=torch.bool)
        for part in box_chunks(boxes.shape[1], num_images * num_anchors):
            iou = box_ops.pairwise_iou(anchors, boxes[:, part]).masked_fill(~valid[:, None, part], -1.0)  # [N, R, m]
            best, box = iou.max(dim=2)
            better = best > quality  # strict: on ties the earlier box stays
            quality = torch.where(better, best, quality)
            index = torch.where(better, box + part.start, index)
            if self.allow_low_quality_matches:
                low_quality |= _best_of_some_box(iou)
        return self._decide(quality, index, low_quality)

    def set_low_quality_matches_(self, matches, all_matches, match_quality_matrix):
        """Restore in place, for anchors that have the highest IoU with some box, what the thresholds took away.

        Args:
            matches: [R] int64, changed.
            all_matches: [R] int64, the best box of each anchor before the thresholds.
            match_quality_matrix: [M, R] IoU of each box with each anchor.
        """
        low_quality = _best_of_some_box(match_quality_matrix.t())
        matches[low_quality] = all_matches[low_quality]

    def _decide(self, quality, index, low_quality):
        matches = index.masked_fill(quality < self.high_threshold, self.BETWEEN_THRESHOLDS)
        matches = matches.masked_fill(quality < self.low_threshold, self.BELOW_LOW_THRESHOLD)
        return torch.where(low_quality, index, matches) if self.allow_low_quality_matches else matches


def _best_of_some_box(iou):
    """Anchors that have, among all anchors, the highest IoU with some box: [..., R, m] -> bool [..., R].

    A box that no anchor overlaps has no best anchor: else all anchors would be matched because of it.
    """
    best = iou.max(dim=-2, keepdim=True)[0]
    return ((iou == best) & (best > 0)).any(dim=-1)
