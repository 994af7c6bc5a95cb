"""IoU losses, on distances (left, top, right, bottom) from a location to the sides of a box and on boxes.

No pixel is added to the sides here: distances and corners are continuous.
"""
import torch
from torch import nn

LOSS_TYPES = ("iou", "linear_iou", "giou")


def iou_loss(pred_ltrb, target_ltrb, loss_type="iou"):
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

    Returns:
        [...] losses, at least float32.

    Raises:
        ValueError: unknown loss_type.

    Note:
        Legacy: where a predicted and a target distance are equal, intersection and enclosing box take the target and
        pass no gradient on, as on torch 1.7; test_iou_loss pins it.

    Reference:
        Yu et al., UnitBox, arXiv:1608.01471, equation 2; Rezatofighi et al., GIoU, arXiv:1902.09630, algorithm 1.
    """
    _check_type("iou_loss", loss_type)
    pred_ltrb, target_ltrb = _at_least_float32(pred_ltrb), _at_least_float32(target_ltrb)
    pred_area = _area(pred_ltrb)
    target_area = _area(target_ltrb)
    # `where` instead of torch.min and max: these share the gradient of a tie differently from torch to torch
    intersection = _area(torch.where(pred_ltrb < target_ltrb, pred_ltrb, target_ltrb))
    union = pred_area + target_area - intersection
    iou = (intersection + 1.0) / (union + 1.0)
    if loss_type == "iou":
        return -torch.log(iou)
    if loss_type == "linear_iou":
        return 1 - iou
    enclosing = _area(torch.where(pred_ltrb > target_ltrb, pred_ltrb, target_ltrb)) + 1e-7
    return 1 - (iou - (enclosing - union) / enclosing)


def giou_loss(pred_boxes, target_boxes):
    """1 - GIoU of each predicted box with its target.

    With intersection I, union U and smallest enclosing box E: GIoU = I / U - (E - U) / E.

    Args:
        pred_boxes, target_boxes: [..., 4] xyxy.  Inverted predictions count as boxes without extent.  Half precision is
            computed in float32.

    Returns:
        [...] losses, at least float32.

    Note:
        Where a predicted and a target side are equal, no gradient passes through that side.

    Reference:
        Rezatofighi et al., GIoU, arXiv:1902.09630, algorithm 1.
    """
    eps = 1e-7
    x1, y1, x2, y2 = _at_least_float32(pred_boxes).unbind(-1)
    u1, v1, u2, v2 = _at_least_float32(target_boxes).unbind(-1)
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
        losses = iou_loss(pred, target, self.loss_type)
        if weight is not None:
            # torch.where instead of `if`: the decision stays on the device
            losses = losses * torch.where(weight.sum() > 0, weight, torch.ones_like(weight))
        return losses.sum()
