"""Which locations must predict which box: those that classify and locate it best (arXiv:2108.07755, section 3.2).

Shape letters as in levels.py: N images, R locations, M boxes of the fullest image, m boxes of a piece; K candidates of
a box.
"""
import torch

from fcos_core.modeling.rpn.atss.targets import MARGIN, Claims, least_side
from fcos_core.modeling.rpn.levels import box_chunks
from fcos_core.modeling.rpn.losses import continuous_iou


def log_alignment(log_probabilities, iou, labels, alpha, beta):
    """Logarithm of t = s^alpha * u^beta; a logarithm, as u^6 of a small box in a large one underflows.

    Args:
        log_probabilities: [N, R, C] log s.
        iou: [N, m, R] u.
        labels: [N, m] int64, 1..C; 0 counts as 1.
        alpha, beta: exponents.

    Returns:
        [N, m, R], -inf where the IoU is 0.
    """
    classes = (labels - 1).clamp(min=0)[:, None, :].expand(-1, log_probabilities.shape[1], -1)
    log_scores = log_probabilities.gather(2, classes).transpose(1, 2)
    return alpha * log_scores + beta * iou.log()


@torch.no_grad()
def assign_aligned(locations, log_probabilities, boxes, gt_boxes, gt_labels, topk, alpha, beta):
    """Task-aligned assignment; memory is bounded whatever the number of boxes.

    Args:
        locations: [R, 2] (x, y) pixels.
        log_probabilities: [N, R, C].
        boxes: [N, R, 4] predicted, xyxy pixels.
        gt_boxes: [N, M, 4] xyxy pixels, padded.
        gt_labels: [N, M] int64; 0 marks padding.
        topk: candidates of a box.
        alpha, beta: exponents of class probability and IoU.

    Returns:
        Assignment, and [N, R] what the class of a positive must predict: t, scaled for each box so that its largest
        value is the largest IoU that a positive of the box has; 0 outside the positives.
    """
    num_images, num_boxes = gt_labels.shape
    num_locations = len(locations)
    claims = Claims(num_images, num_locations, locations.device)
    candidates, alignments, ious = [], [], []
    for part in box_chunks(num_boxes, num_images * num_locations, claims.most_boxes):
        gt, labels = gt_boxes[:, part, None], gt_labels[:, part]
        iou = continuous_iou(boxes[:, None], gt)  # [N, m, R]
        # 1. how well each location inside the box does at both tasks
        allowed = (least_side(locations, gt) > MARGIN) & (labels > 0)[:, :, None]
        alignment = log_alignment(log_probabilities, iou, labels, alpha, beta)
        alignment = alignment.masked_fill(~(allowed & (iou > 0)), -float("inf"))
        # 2. the best ones
        alignment, candidate = alignment.topk(min(topk, num_locations), dim=2)  # [N, m, K]
        iou = iou.gather(2, candidate)
        # 3. ambiguity: the highest IoU wins
        claims.add(candidate, iou, alignment > -float("inf"), part.start)
        candidates.append(candidate)
        alignments.append(alignment)
        ious.append(iou)
    assignment = claims.assignment()
    quality = boxes.new_zeros(num_images, num_locations)
    if num_boxes:
        parts = [torch.cat(values, dim=1) for values in (candidates, alignments, ious)]
        quality = _normalised(assignment, *parts, zeros=quality)
    return assignment, quality


def _normalised(assignment, candidate, alignment, iou, zeros):
    """t times (largest IoU of the box / largest t of the box), over the candidates [N, M, K] that a box got: [N, R]."""
    num_images, num_boxes, num_candidates = candidate.shape
    flat = candidate.flatten(1)
    box = torch.arange(num_boxes, device=flat.device)[:, None].expand(num_boxes, num_candidates).flatten()
    own = assignment.positive.gather(1, flat) & (assignment.index.gather(1, flat) == box)
    own = (own.view_as(candidate)) & (alignment > -float("inf"))
    best = alignment.masked_fill(~own, -float("inf")).max(dim=2, keepdim=True)[0]
    value = torch.exp(alignment - best) * iou.masked_fill(~own, 0.0).max(dim=2, keepdim=True)[0]
    value = value.masked_fill(~own, 0.0)
    # A location is the own candidate of one box at most; the others write behind the end.
    place = flat.masked_fill(~own.flatten(1), zeros.shape[1])
    padded = torch.cat((zeros, zeros.new_zeros(num_images, 1)), dim=1)
    return padded.scatter(1, place, value.flatten(1))[:, :-1]
