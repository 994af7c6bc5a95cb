"""NMS of tensor operations of torch; csrc/nms/nms.h says what it computes, and nms.cpp has the same in C++ for GPUs."""

import torch

from fcos_core.layers._fallback.checks import (
    check,
    check_floating,
    check_integral,
    check_same_device,
    check_shape,
    compute_dtype,
)

# pairs of boxes whose IoU is held at a time
_MAX_PAIRS = 2**22
_MAX_BLOCK = 512


def nms(boxes, scores, iou_threshold):
    """See `fcos_core.layers.nms`."""
    _check_list("nms", boxes, scores)
    _check_threshold("nms", iou_threshold)
    return _kept_indices(_keep_mask(boxes[None], scores[None], None, iou_threshold))


def ml_nms(boxes, scores, labels, iou_threshold):
    """See `fcos_core.layers.ml_nms`."""
    _check_list("ml_nms", boxes, scores)
    fits = labels.dim() == 1 and labels.shape[0] == scores.shape[0]
    check_shape("ml_nms", "labels", labels, fits, "[M], one per box")
    check_same_device("ml_nms", "labels", labels, "boxes", boxes)
    _check_threshold("ml_nms", iou_threshold)
    labels = _whole_labels("ml_nms", labels)
    return _kept_indices(_keep_mask(boxes[None], scores[None], labels[None], iou_threshold))


def batched_nms(boxes, scores, labels, iou_threshold):
    """See `fcos_core.layers.batched_nms`."""
    name = "batched_nms"
    check_floating(name, "boxes", boxes)
    check_floating(name, "scores", scores)
    check_integral(name, "labels", labels)
    check_shape(name, "boxes", boxes, boxes.dim() == 3 and boxes.shape[2] == 4, "[N, K, 4]")
    check_shape(name, "scores", scores, scores.shape == boxes.shape[:2], "[N, K], one per box")
    check_shape(name, "labels", labels, labels.shape == boxes.shape[:2], "[N, K], one per box")
    check_same_device(name, "scores", scores, "boxes", boxes)
    check_same_device(name, "labels", labels, "boxes", boxes)
    _check_threshold(name, iou_threshold)
    labels = labels.long()
    return _keep_mask(boxes, scores, labels, iou_threshold, real=labels >= 0)


def _check_threshold(name, iou_threshold):
    advice = "a threshold of 1 or more keeps every box"
    check(iou_threshold >= 0, name, "iou_threshold", "to be at least 0", float(iou_threshold), advice)


def _check_list(name, boxes, scores):
    check_floating(name, "boxes", boxes)
    check_floating(name, "scores", scores)
    check_shape(name, "boxes", boxes, boxes.dim() == 2 and boxes.shape[1] == 4, "[M, 4]")
    check_shape(name, "scores", scores, scores.dim() == 1, "[M]")
    rule = "to have one entry per box ({})".format(boxes.shape[0])
    number = scores.shape[0]
    check(number == boxes.shape[0], name, "scores", rule, number, "pass the scores of these boxes")
    check_same_device(name, "scores", scores, "boxes", boxes)


def _whole_labels(name, labels):
    # Legacy: the ancestors passed them as float tensors.
    if not labels.is_floating_point():
        check_integral(name, "labels", labels)
        return labels.long()
    check_floating(name, "labels", labels)
    whole = labels.long()
    same = bool((whole.to(labels.dtype) == labels).all())
    check(same, name, "labels", "to hold class ids", "fractions or non-finite values", "pass an int64 tensor")
    return whole


def _kept_indices(keep):
    return keep[0].nonzero(as_tuple=True)[0]


def _falling_order(scores):
    """Order of falling score per row, ties by index, NaN last, from a sort that need not be stable."""
    nan = scores != scores
    # the same score has the same rank in all rows
    rank = torch.unique(scores.masked_fill(nan, 0), sorted=True, return_inverse=True)[1].reshape(scores.shape)
    place = (scores.numel() - rank).masked_fill(nan, scores.numel() + 1)
    index = torch.arange(scores.shape[1], device=scores.device)
    return (place * scores.shape[1] + index).argsort(dim=1)


def _iou(a, b):
    """IoU of boxes [N, A, 4] and [N, B, 4] -> [N, A, B]; sides count inclusive pixels, see csrc/box_iou.h."""

    def side(low, high):
        length = high - low + 1
        return length.masked_fill(length < 0, 0)

    def area(boxes):
        return side(boxes[..., 0], boxes[..., 2]) * side(boxes[..., 1], boxes[..., 3])

    def common(low, high):
        return side(
            torch.max(a[:, :, None, low], b[:, None, :, low]), torch.min(a[:, :, None, high], b[:, None, :, high])
        )

    both = common(0, 2) * common(1, 3)
    return both / (area(a)[:, :, None] + area(b)[:, None] - both)


@torch.no_grad()
def _keep_mask(boxes, scores, labels, threshold, real=None):
    """bool [N, K] for boxes [N, K, 4], scores [N, K], labels int64 [N, K] or None; `real` [N, K]: not padding.

    Greedy NMS is the only solution of ``keep[i] = not any(suppresses[i, j] and keep[j] for j before i)``.  Repeating
    the equation settles at least one box more each time, in practice nearly all at once.  Blocks bound the memory.
    """
    num_lists, num_boxes = scores.shape
    if scores.numel() == 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    order = _falling_order(scores.to(compute_dtype(scores)))
    boxes = boxes.to(compute_dtype(boxes)).gather(1, order[..., None].expand(-1, -1, 4))
    labels = None if labels is None else labels.gather(1, order)
    keep = torch.ones_like(order, dtype=torch.bool) if real is None else real.gather(1, order)
    block = max(1, min(_MAX_BLOCK, _MAX_PAIRS // (num_lists * num_boxes)))
    for begin in range(0, num_boxes, block):
        end = min(begin + block, num_boxes)
        suppresses = _iou(boxes[:, begin:end], boxes[:, :end]) > threshold  # [N, block, end]
        if labels is not None:
            suppresses = suppresses & (labels[:, begin:end, None] == labels[:, None, :end])
        alive = keep[:, begin:end]
        if begin > 0:
            alive = alive & ~(suppresses[:, :, :begin] & keep[:, None, :begin]).any(-1)
        position = torch.arange(end - begin, device=order.device)
        within = suppresses[:, :, begin:] & (position[None] < position[:, None])
        settled, previous = alive, None
        while previous is None or not torch.equal(settled, previous):
            previous = settled
            settled = alive & ~(within & previous[:, None]).any(-1)
        keep[:, begin:end] = settled
    return torch.empty_like(keep).scatter_(1, order, keep)
