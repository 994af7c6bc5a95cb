"""Greedy non-maximum suppression; the kernels and their contract are in csrc/nms.

Boxes count inclusive pixels: a side is ``x2 - x1 + 1`` long.  Of equal scores the lower index goes first; NaN scores go
last.  An IoU equal to the threshold does not suppress.  Boxes of negative extent and boxes with a NaN coordinate
neither suppress nor are suppressed.  IoU is computed and compared in float32, for float64 boxes in float64.

Letters: M boxes of one list, N images, K boxes of an image.
"""

import torch

from fcos_core.layers._library import load

__all__ = ["nms", "ml_nms", "batched_nms"]


def nms(boxes, scores, iou_threshold):
    """Keep the boxes that no better kept box overlaps.

    Args:
        boxes: [M, 4] x1 y1 x2 y2 in pixels, any floating dtype.
        scores: [M], any floating dtype.
        iou_threshold (float): at least 0; a box goes if its IoU with a better kept one is above.

    Returns:
        int64 [kept]: indices of the kept boxes, ascending (not in the order of scores).

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or the threshold is negative.

    Note:
        The size of the result depends on the data, so a GPU is synchronised; `batched_nms` avoids that.

    Reference:
        Felzenszwalb et al., Object Detection with Discriminatively Trained Part Based Models, 2010, section 5.2.
    """
    load()
    return torch.ops.fcos_core.nms(boxes, scores, float(iou_threshold))


def ml_nms(boxes, scores, labels, iou_threshold):
    """NMS in which a box suppresses only boxes of its own label.

    Args:
        boxes: [M, 4] x1 y1 x2 y2 in pixels, any floating dtype.
        scores: [M], any floating dtype.
        labels: [M] class ids, any integer dtype, or floating (as the ancestors passed them) with whole numbers.
        iou_threshold (float): at least 0.

    Returns:
        int64 [kept]: indices of the kept boxes, ascending.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, the threshold is negative, or a label is a fraction.

    Note:
        A GPU is synchronised once, for the size of the result, and for floating labels once more, to check them.
    """
    load()
    return torch.ops.fcos_core.ml_nms(boxes, scores, labels, float(iou_threshold))


def batched_nms(boxes, scores, labels, iou_threshold):
    """NMS per image and label, over a whole batch, with an output of fixed size.

    Args:
        boxes: [N, K, 4] x1 y1 x2 y2 in pixels, any floating dtype.
        scores: [N, K], any floating dtype.
        labels: [N, K] class ids, any integer dtype; a label below 0 marks padding, which is never kept and suppresses
            nothing.
        iou_threshold (float): at least 0.

    Returns:
        bool [N, K]: which boxes are kept.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or the threshold is negative.

    Note:
        With compiled CUDA kernels a GPU is not synchronised, and the call can be captured in a CUDA graph.  CPU and GPU
        keep the same boxes, each time.
    """
    load()
    return torch.ops.fcos_core.batched_nms(boxes, scores, labels, float(iou_threshold))
