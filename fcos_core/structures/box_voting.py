"""Box voting: overlapping detections of a class decide together where the object is.

Boxes are grouped greedily: the best box that is left, and all that are left and overlap it by the threshold or more,
make a group.  Letters: M boxes, G groups.

Reference: Gidaris and Komodakis, Object detection via a multi-region and semantic segmentation-aware CNN model,
arXiv:1505.01749, section 4.
"""
import numpy as np
import torch

from fcos_core.layers.nms import ml_nms
from fcos_core.structures import box_ops

# Elements of the largest temporary tensor.
_MAX_ELEMENTS = 1 << 24


def bbox_vote(boxes, scores, vote_thresh, labels=None):
    """One box for each group: the mean, weighted by score, with the best score.

    Args:
        boxes: [M, 4] xyxy pixels.
        scores: [M], positive.
        vote_thresh: IoU from which on boxes belong together.
        labels: [M] integers; only boxes of the same label belong together.  None: all do.

    Returns:
        boxes [G, 4], scores [G], and the labels [G] if they were given; a group of one is left as it is.
    """
    leader, first = _groups(boxes, scores, labels, vote_thresh)
    return _with_labels(_mean_boxes(boxes, scores, leader, first), scores[first], labels, first)


def soft_bbox_vote(boxes, scores, vote_thresh, labels=None, score_thresh=0.05):
    """`bbox_vote`, and the members of each group besides, with their scores times 1 - IoU with the best one.

    Args:
        boxes, scores, vote_thresh, labels: see `bbox_vote`.
        score_thresh: members whose score falls below are left out.

    Returns:
        As `bbox_vote`, best first.
    """
    leader, first = _groups(boxes, scores, labels, vote_thresh)
    softened = scores * (1 - box_ops.iou(boxes, boxes[leader]))
    members = ((_sizes(leader) > 1)[leader] & (softened >= score_thresh)).nonzero().squeeze(1)
    index = torch.cat((first, members))
    all_scores = torch.cat((scores[first], softened[members]))
    all_boxes = torch.cat((_mean_boxes(boxes, scores, leader, first), boxes[members]))
    order = all_scores.argsort(descending=True)
    return _with_labels(all_boxes[order], all_scores[order], labels, index[order])


def _with_labels(boxes, scores, labels, index):
    return (boxes, scores) if labels is None else (boxes, scores, labels[index])


def _groups(boxes, scores, labels, threshold):
    """For each box [M] the best one of its group, and the best ones [G], ascending."""
    if labels is None:
        labels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    # nms drops what is above a threshold: the one below this one, to drop what reaches it too
    below = float(np.nextafter(np.float32(threshold), np.float32(0)))
    first = ml_nms(boxes, scores, labels, below)
    ranked = first[scores[first].argsort(descending=True)]
    leader = torch.empty_like(labels, dtype=torch.int64)
    step = max(1, _MAX_ELEMENTS // max(1, len(ranked)))
    for start in range(0, len(boxes), step):
        part = slice(start, start + step)
        iou = box_ops.pairwise_iou(boxes[part], boxes[ranked])
        iou = iou.masked_fill(labels[part, None] != labels[ranked], -1.0)
        # of the leaders that a box overlaps enough it joins the best; if rounding leaves none, the nearest
        place = torch.arange(len(ranked), device=boxes.device).expand_as(iou)
        joined = place.masked_fill(iou < threshold, len(ranked)).min(dim=1)[0]
        leader[part] = ranked[torch.where(joined < len(ranked), joined, iou.argmax(dim=1))]
    leader[first] = first
    return leader, first


def _mean_boxes(boxes, scores, leader, first):
    """Mean box of each group, weighted by score: [G, 4]."""
    weight = scores.double()
    sums = boxes.new_zeros(boxes.shape, dtype=torch.float64).index_add_(0, leader, boxes.double() * weight[:, None])
    weights = torch.zeros_like(weight).index_add_(0, leader, weight)
    mean = (sums[first] / weights[first][:, None]).to(boxes.dtype)
    return torch.where((_sizes(leader) > 1)[first][:, None], mean, boxes[first])


def _sizes(leader):
    """Members of the group that each box leads: [M], 0 if it leads none."""
    return torch.zeros_like(leader).index_add_(0, leader, torch.ones_like(leader))
