"""Which anchors must predict which box: the assignment rules that ATSS compares (arXiv:1912.02424, section 3 and 4).

Each rule takes a `Pyramid` and the padded boxes of a batch and returns an `Assignment`.  They run over the whole batch
on the device, with memory bounded whatever the number of boxes: boxes are handled in pieces, with the same result.

Shape letters as in levels.py: N images, R anchors, M boxes of the fullest image, m boxes of a piece; K candidates of a
box.
"""
import collections

import torch

from fcos_core.modeling.matcher import Matcher
from fcos_core.modeling.rpn.atss.nearest import nearest_locations, work_per_level
from fcos_core.modeling.rpn.fcos.targets import distances_to_sides, size_ranges, smallest_box
from fcos_core.modeling.rpn.levels import box_chunks, constants, per_location
from fcos_core.structures import box_ops

# The centre of a positive anchor lies inside its box by more than this, pixels.
MARGIN = 0.01

Assignment = collections.namedtuple(
    "Assignment",
    [
        "positive",  # bool [N, R]
        "index",  # int64 [N, R], the box of a positive anchor
        "ignored",  # bool [N, R]: neither positive nor background
    ],
)


def _centers(boxes):
    """Centres (x, y) of boxes: [..., 4] -> [..., 2]."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


class Pyramid(object):
    """The anchors of a batch.

    Args:
        levels: list of L tensors [H, W, A, 4] xyxy pixels; the A anchors of a location share their centre.
        strides: L numbers, pixels.

    Attributes:
        anchors: [R, 4]; centers: [R, 2] (x, y); origins, ends: [L, 2] first and last location of each level.
        grid_sizes: list of L (H, W); counts: list of L numbers of anchors; per_location: A.
    """

    def __init__(self, levels, strides):
        self.strides = list(strides)
        self.grid_sizes = [tuple(level.shape[:2]) for level in levels]
        self.per_location = levels[0].shape[2]
        self.counts = [height * width * self.per_location for height, width in self.grid_sizes]
        self.anchors = torch.cat([level.reshape(-1, 4) for level in levels])
        self.centers = _centers(self.anchors)
        # Without the rounding errors of the anchors, so that what is symmetric is at the same distance.
        self.origins = (_centers(torch.stack([level[0, 0, 0] for level in levels])) * 256).round() / 256
        self.ends = _centers(torch.stack([level[-1, -1, 0] for level in levels]))


class Claims(object):
    """Boxes claim anchors; each anchor goes to the claim of highest IoU, of equal ones to the earliest box.

    A scatter with maximum, by sorting: no torch older than 1.12 has one, and this is deterministic everywhere.  IoUs
    are compared as multiples of 2^-30: exact above 1/64 in float32, up to 1e-9 below.
    """

    # A sort key holds, from the top: anchor; 31 bits that fall with the IoU; number of the box in its piece.
    _ONE = 1 << 30
    _IOU_BITS = 31

    def __init__(self, num_images, num_anchors, device):
        self._anchors = torch.arange(num_anchors, device=device)
        self._box_bits = 63 - self._IOU_BITS - num_anchors.bit_length()
        self.most_boxes = 1 << self._box_bits  # of a piece
        self._quality = torch.full((num_images, num_anchors), -1, dtype=torch.int64, device=device)
        self._index = torch.zeros_like(self._quality)

    def add(self, anchor, iou, claimed, first_box):
        """Take in the claims of a piece of the boxes.

        Args:
            anchor: [N, m, K] int64.
            iou: [N, m, K].
            claimed: bool [N, m, K]: is it a claim?
            first_box: index of the first box of the piece.
        """
        worse = self._ONE - (iou.masked_fill(~claimed, 0.0).double() * self._ONE).long()
        box = torch.arange(anchor.shape[1], device=anchor.device)[:, None]
        anchor = anchor.masked_fill(~claimed, len(self._anchors))  # behind all others
        keys = (((anchor << self._IOU_BITS) | worse) << self._box_bits) | box
        keys = keys.flatten(1).sort(dim=1)[0]
        # The best claim on an anchor is the first key that is not below the anchor's own.
        bounds = (self._anchors << (self._IOU_BITS + self._box_bits)).expand(len(keys), -1).contiguous()
        key = keys.gather(1, torch.searchsorted(keys, bounds).clamp(max=keys.shape[1] - 1))
        quality = self._ONE - ((key >> self._box_bits) & ((1 << self._IOU_BITS) - 1))
        claimed = (key >> (self._IOU_BITS + self._box_bits)) == self._anchors
        better = claimed & (quality > self._quality)  # strict: of equal ones the earlier box stays
        self._quality = torch.where(better, quality, self._quality)
        self._index = torch.where(better, (key & (self.most_boxes - 1)) + first_box, self._index)

    def assignment(self):
        """What the claims so far give."""
        positive = self._quality >= 0
        return Assignment(positive, self._index, torch.zeros_like(positive))


def least_side(centers, boxes):
    """Distance of the centres [..., 2] to the nearest side of boxes [..., 4], negative outside: [...]."""
    (x, y), (x1, y1, x2, y2) = centers.unbind(-1), boxes.unbind(-1)
    return torch.min(torch.min(x - x1, y - y1), torch.min(x2 - x, y2 - y))


def nearest_anchors(pyramid, points, topk):
    """The anchors of the topk locations of each level that are nearest to each point.

    Args:
        pyramid: Pyramid.
        points: [N, m, 2] (x, y) pixels.
        topk: locations on each level.

    Returns:
        [N, m, K] int64, K = L * topk * A; see `_is_real` for the meaningful ones.
    """
    strides = constants(pyramid.strides, points.dtype, points.device)
    locations = nearest_locations(points, pyramid.origins, strides, pyramid.grid_sizes, topk)  # [N, m, L, topk]
    anchor = torch.arange(pyramid.per_location, device=points.device)
    return (locations[..., None] * pyramid.per_location + anchor).flatten(2)


def _is_real(pyramid, topk):
    """For each of K candidates: has its level that many locations?  List of bools."""
    return [k < h * w for h, w in pyramid.grid_sizes for k in range(topk) for _ in range(pyramid.per_location)]


@torch.no_grad()
def assign_atss(pyramid, gt_boxes, gt_labels, topk):
    """Adaptive training sample selection (algorithm 1 of the paper).

    Args:
        pyramid: Pyramid.
        gt_boxes: [N, M, 4] xyxy pixels, padded.
        gt_labels: [N, M] int64; 0 marks padding.
        topk: candidates of a box on each level, for each anchor of a location.

    Returns:
        Assignment.
    """
    num_images, num_boxes = gt_labels.shape
    num_levels = len(pyramid.strides)
    real = _is_real(pyramid, topk)
    num_candidates, real = sum(real), constants(real, torch.bool, gt_boxes.device)
    claims = Claims(num_images, len(pyramid.anchors), gt_boxes.device)
    per_box = num_images * num_levels * max(work_per_level(topk), topk * pyramid.per_location * 4)
    for part in box_chunks(num_boxes, per_box, claims.most_boxes):
        boxes = gt_boxes[:, part]
        # 1. on each level, the anchors whose centres are nearest to the centre of the box
        candidates = nearest_anchors(pyramid, _centers(boxes), topk)  # [N, m, K]
        iou = box_ops.iou(pyramid.anchors[candidates], boxes[:, :, None])
        # 2. threshold: mean plus (unbiased) standard deviation of their IoUs
        threshold = _mean_plus_deviation(iou, real, num_candidates)
        # 3. positive: above the threshold, centre inside the box
        inside = least_side(pyramid.centers[candidates], boxes[:, :, None]) > MARGIN
        positive = (iou >= threshold) & inside & real & (gt_labels[:, part, None] > 0)
        # 4. ambiguity: the highest IoU wins
        claims.add(candidates, iou, positive, part.start)
    return claims.assignment()


def _mean_plus_deviation(iou, real, count):
    """Mean plus unbiased standard deviation over the `count` real candidates: [N, m, K] -> [N, m, 1].

    In float64, so that the order of the sum, which depends on the size of the piece, cannot show.
    """
    values = iou.double() * real
    mean = values.sum(dim=2, keepdim=True) / count
    variance = ((values - mean) * real).pow(2).sum(dim=2, keepdim=True) / max(count - 1, 1)
    return (mean + variance.sqrt()).to(iou.dtype)


@torch.no_grad()
def assign_topk(pyramid, gt_boxes, gt_labels, topk):
    """The topk anchors of highest IoU of each box, whatever their level; a small penalty on the distance breaks ties.

    Args, Returns: see `assign_atss`; here topk is the number of anchors.
    """
    num_images, num_boxes = gt_labels.shape
    num_anchors = len(pyramid.anchors)
    valid = gt_labels > 0
    claims = Claims(num_images, num_anchors, gt_boxes.device)
    if num_boxes == 0:
        return claims.assignment()
    centers = _centers(gt_boxes)
    farthest = _farthest(pyramid, centers, valid)
    index_bits = num_anchors.bit_length()
    for part in box_chunks(num_boxes, 2 * num_images * num_anchors, claims.most_boxes):  # 2: 64-bit keys
        boxes = gt_boxes[:, part]
        iou = box_ops.pairwise_iou(boxes, pyramid.anchors)  # [N, m, R]
        distance = (centers[:, part, None] - pyramid.centers).pow(2).sum(dim=3).sqrt()
        # integers with the index in the lower bits: of equal values the higher index goes first, on every device
        quality = ((iou - distance / farthest / 1000).double() * (1 << (61 - index_bits))).long()
        quality = quality * (1 << index_bits) + torch.arange(num_anchors, device=quality.device)
        best = quality.topk(min(topk, num_anchors), dim=2)[0]
        candidates = (best & ((1 << index_bits) - 1)).clamp(max=num_anchors - 1)  # [N, m, topk]; NaN leaves any bits
        inside = least_side(pyramid.centers[candidates], boxes[:, :, None]) > MARGIN
        claims.add(candidates, iou.gather(2, candidates), inside & valid[:, part, None], part.start)
    return claims.assignment()


def _farthest(pyramid, centers, valid):
    """Largest distance between the centres of a box and an anchor in each image: to a corner of a level.  [N, 1, 1]"""
    centers = centers[:, :, None]
    reach = torch.max((centers - pyramid.origins).abs(), (centers - pyramid.ends).abs())  # [N, M, L, 2]
    distance = reach.pow(2).sum(dim=3).sqrt().max(dim=2)[0]
    return distance.masked_fill(~valid, 1.0).max(dim=1)[0][:, None, None]


@torch.no_grad()
def assign_ssc(pyramid, gt_boxes, gt_labels):
    """The rule of FCOS on the centres of the anchors, without centre sampling ("scale and spatial constraint").

    Args, Returns: see `assign_atss`.
    """
    centers, counts = pyramid.centers, pyramid.counts
    strides = per_location(pyramid.strides, counts, centers.device, centers.dtype)
    ranges = per_location(size_ranges(len(counts)), counts, centers.device, centers.dtype)
    positive, index = smallest_box(centers, strides, ranges, gt_boxes, gt_labels, margin=MARGIN)
    return Assignment(positive, index, torch.zeros_like(positive))


@torch.no_grad()
def assign_iou(pyramid, gt_boxes, gt_labels, high_threshold, low_threshold):
    """The rule of RetinaNet; anchors between the thresholds, and matched ones with the centre outside, are ignored.

    Args, Returns: see `assign_atss`; thresholds: see Matcher.
    """
    matcher = Matcher(high_threshold, low_threshold, allow_low_quality_matches=True)
    matches = matcher.match(pyramid.anchors, gt_boxes, gt_labels > 0)
    index = matches.clamp(min=0)
    if gt_labels.shape[1] == 0:
        return Assignment(matches >= 0, index, matches == matcher.BETWEEN_THRESHOLDS)
    boxes = gt_boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
    outside = distances_to_sides(pyramid.centers, boxes).min(dim=2)[0] <= MARGIN
    ignored = (matches == matcher.BETWEEN_THRESHOLDS) | ((matches >= 0) & outside)
    return Assignment((matches >= 0) & ~outside, index, ignored)
