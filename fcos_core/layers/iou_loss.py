"""IoU losses, on distances (left, top, right, bottom) from a location to the sides of a box and on boxes.

The kernels and their contract are in csrc/iou_loss.  No pixel is added to the sides here: distances and corners are
continuous.
"""
import torch
from torch import nn

from fcos_core.layers._library import load

LOSS_TYPES = ("iou", "linear_iou", "giou")

# the numbers of the operator
_KINDS = {"iou": 0, "linear_iou": 1, "giou": 2, "box_giou": 3}
_REDUCTIONS = {"none": 0, "sum": 2}


def iou_loss(pred_ltrb, target_ltrb, loss_type="iou", weight=None, reduction="none"):
    """Loss of each predicted box against its target, both seen from the same location.

    With intersection I, union U and smallest enclosing box E (areas in square units of the input)::

        iou = (I + 1) / (U + 1)        the ones smooth boxes of vanishing area
        "iou"          -log(iou)
        "linear_iou"   1 - iou
        "giou"         1 - (iou - (E - U) / E)

    Args:
        pred_ltrb, target_ltrb: [..., 4], non-negative (a location inside both boxes); otherwise the result has no
            meaning and may be NaN.  Half precision is computed in float32: areas of large boxes overflow float16.
        loss_type: one of LOSS_TYPES.
        weight: [...] or None; multiplies the losses.  A box of weight 0 counts 0, whatever its numbers.
        reduction: "none" or "sum".

    Returns:
        "none": [...] losses; "sum": scalar.  At least float32.

    Raises:
        ValueError: unknown loss_type or reduction.
        RuntimeError: shapes, dtypes or devices do not fit.

    Note:
        Gradient to all arguments; through the kernels, which serve where only the prediction needs one, once
        differentiable.  The result does not depend on the number of threads, and a GPU gives the same bits each time.
        Legacy: where a predicted and a target distance are equal, intersection and enclosing box take the target and
        pass no gradient on, as on torch 1.7; test_iou_loss pins it.

    Reference:
        Yu et al., UnitBox, arXiv:1608.01471, equation 2; Rezatofighi et al., GIoU, arXiv:1902.09630, algorithm 1.
    """
    _check_type("iou_loss", loss_type)
    return _pair_loss("iou_loss", pred_ltrb, target_ltrb, weight, loss_type, reduction)


def giou_loss(pred_boxes, target_boxes, weight=None, reduction="none"):
    """1 - GIoU of each predicted box with its target.

    With intersection I, union U and smallest enclosing box E: GIoU = I / U - (E - U) / E.

    Args:
        pred_boxes, target_boxes: [..., 4] xyxy.  Inverted predictions count as boxes without extent.  Half precision is
            computed in float32.
        weight: [...] or None; multiplies the losses.  A box of weight 0 counts 0, whatever its numbers.
        reduction: "none" or "sum".

    Returns:
        "none": [...] losses; "sum": scalar.  At least float32.

    Raises:
        ValueError: unknown reduction.
        RuntimeError: shapes, dtypes or devices do not fit.

    Note:
        Gradients as of `iou_loss`.  Where a predicted and a target side are equal, no gradient passes through that
        side.

    Reference:
        Rezatofighi et al., GIoU, arXiv:1902.09630, algorithm 1.
    """
    return _pair_loss("giou_loss", pred_boxes, target_boxes, weight, "box_giou", reduction)


def _pair_loss(function, pred, target, weight, kind, reduction):
    if reduction not in _REDUCTIONS:
        raise ValueError(
            "{}: expected reduction to be one of {}, got {!r}; divide the sum yourself for a mean".format(
                function, sorted(_REDUCTIONS), reduction
            )
        )
    if pred.shape != target.shape:
        pred, target = torch.broadcast_tensors(pred, target)
    if torch.is_grad_enabled() and (target.requires_grad or (weight is not None and weight.requires_grad)):
        return _composed(pred, target, weight, kind, reduction)
    if pred.dtype != target.dtype:
        dtype = torch.promote_types(pred.dtype, target.dtype)
        pred, target = pred.to(dtype), target.to(dtype)
    shape = pred.shape[:-1]
    if pred.dim() != 2:
        pred, target = pred.reshape(-1, 4), target.reshape(-1, 4)
        weight = None if weight is None else weight.expand(shape).reshape(-1)
    load()
    losses = torch.ops.fcos_core.iou_loss(pred, target, weight, _KINDS[kind], _REDUCTIONS[reduction])
    return losses.reshape(shape) if reduction == "none" else losses


# ---- the formulas in operators of torch, which differentiate them by everything ----


def composed_losses(pred, target, kind):
    """Losses [...] of pairs [..., 4], a kind of `_KINDS`, without weights."""
    formula = _composed_boxes if kind == "box_giou" else _composed_distances
    return formula(_at_least_float32(pred), _at_least_float32(target), kind)


def _composed(pred, target, weight, kind, reduction):
    losses = composed_losses(pred, target, kind)
    if weight is not None:
        losses = torch.where(weight == 0, torch.zeros_like(losses), losses * weight)
    return losses.sum() if reduction == "sum" else losses


def _composed_distances(pred, target, kind):
    # `where` instead of torch.min and max: these share the gradient of a tie differently from torch to torch
    intersection = _area(torch.where(pred < target, pred, target))
    union = _area(pred) + _area(target) - intersection
    iou = (intersection + 1.0) / (union + 1.0)
    if kind == "iou":
        return -torch.log(iou)
    if kind == "linear_iou":
        return 1 - iou
    enclosing = _area(torch.where(pred > target, pred, target)) + 1e-7
    return 1 - (iou - (enclosing - union) / enclosing)


def _composed_boxes(pred, target, _):
    eps = 1e-7
    x1, y1, x2, y2 = pred.unbind(-1)
    u1, v1, u2, v2 = target.unbind(-1)
    # `where` instead of torch.min and max: these share the gradient of a tie differently from torch to torch
    x2, y2 = torch.where(x1 > x2, x1, x2), torch.where(y1 > y2, y1, y2)
    width = (torch.where(x2 < u2, x2, u2) - torch.where(x1 > u1, x1, u1)).clamp(min=0)
    height = (torch.where(y2 < v2, y2, v2) - torch.where(y1 > v1, y1, v1)).clamp(min=0)
    intersection = width * height
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - intersection + eps
    width = torch.where(x2 > u2, x2, u2) - torch.where(x1 < u1, x1, u1)
    height = torch.where(y2 > v2, y2, v2) - torch.where(y1 < v1, y1, v1)
    enclosing = width * height + eps
    return 1 - (intersection / union - (enclosing - union) / enclosing)


def _at_least_float32(ltrb):
    return ltrb.float() if ltrb.dtype in (torch.float16, torch.bfloat16) else ltrb


def _area(ltrb):
    left, top, right, bottom = ltrb.unbind(-1)
    return (left + right) * (top + bottom)


def _check_type(function, loss_type):
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"{function}: expected loss_type to be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}")


class IOULoss(nn.Module):
    """Weighted sum of `iou_loss` over boxes.

    Args:
        loss_type: one of LOSS_TYPES (MODEL.FCOS.IOU_LOSS_TYPE).
    """

    def __init__(self, loss_type="iou"):
        super().__init__()
        _check_type("IOULoss", loss_type)
        self.loss_type = loss_type

    def forward(self, pred, target, weight=None):
        """Sum the losses.

        Args:
            pred, target: [M, 4] distances left, top, right, bottom; M = 0 gives 0, attached to the graph.
            weight: [M] or None.

        Returns:
            Scalar.

        Note:
            Legacy: weights whose sum is not positive are ignored, that is all count 1; test_iou_loss pins it.
        """
        if weight is not None:
            # torch.where instead of `if`: the decision stays on the device
            weight = torch.where(weight.sum() > 0, weight, torch.ones_like(weight))
        return iou_loss(pred, target, self.loss_type, weight, "sum")
