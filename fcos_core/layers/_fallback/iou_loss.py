"""IoU losses of tensor operations of torch; csrc/iou_loss/iou_loss.h has the formulas."""

import torch

from fcos_core.layers._fallback.checks import (
    check,
    check_floating,
    check_given,
    check_grad_of_losses,
    check_same_device,
    check_shape,
    compute_dtype,
    differentiable_once,
)

_NAME = "iou_loss"
_NONE, _SUM = 0, 2
_KINDS = ("iou", "linear_iou", "giou", "box_giou")


def iou_loss(pred, target, weight, kind, reduction):
    """See `fcos_core.layers.iou_loss`; kind is 0..3 as in the schema, reduction is 0 (none) or 2 (sum)."""
    check_given(_NAME, pred=pred, target=target)
    return _IouLoss.apply(pred, target, weight, kind, reduction)


class _IouLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, target, weight, kind, reduction):
        _check(pred, target, weight, kind, reduction)
        ctx.save_for_backward(pred, target, weight)
        ctx.numbers = (kind, reduction)
        losses = _losses(pred.to(compute_dtype(pred)), target, weight, kind)
        return losses.sum(dtype=torch.float64).to(losses.dtype) if reduction == _SUM else losses

    @staticmethod
    @differentiable_once(_NAME)
    def backward(ctx, grad):
        return (_iou_loss_backward(grad, *ctx.saved_tensors, *ctx.numbers),) + (None,) * 4


def _iou_loss_backward(grad, pred, target, weight, kind, reduction):
    check_given(_NAME, grad=grad, pred=pred, target=target)
    _check(pred, target, weight, kind, reduction)
    check_grad_of_losses(_NAME, grad, "pred", pred, reduction == _SUM, pred.shape[:1], "[M], one per box")
    # the formulas are differentiated by torch, apart from the graph of the caller
    with torch.enable_grad():
        leaf = pred.detach().to(compute_dtype(pred)).requires_grad_()
        losses = _losses(leaf, target.detach(), None if weight is None else weight.detach(), kind)
    factor = grad.detach().to(losses.dtype)
    factor = factor.reshape(()).expand_as(losses) if reduction == _SUM else factor
    return torch.autograd.grad(losses, leaf, factor)[0].to(pred.dtype)


def _check(pred, target, weight, kind, reduction):
    check_floating(_NAME, "pred", pred)
    check_floating(_NAME, "target", target)
    check_shape(_NAME, "pred", pred, pred.dim() == 2 and pred.shape[1] == 4, "[M, 4]")
    check_shape(_NAME, "target", target, target.shape == pred.shape, "[M, 4], as pred")
    rule, advice = "of the dtype of pred ({})".format(pred.dtype), "convert one of them with .to(dtype)"
    check(target.dtype == pred.dtype, _NAME, "target", rule, target.dtype, advice)
    check_same_device(_NAME, "target", target, "pred", pred)
    if weight is not None:
        check_floating(_NAME, "weight", weight)
        check_shape(_NAME, "weight", weight, weight.shape == pred.shape[:1], "[M], one per box")
        check_same_device(_NAME, "weight", weight, "pred", pred)
    advice = "0 iou, 1 linear_iou, 2 giou, 3 giou of boxes"
    check(0 <= kind < len(_KINDS), _NAME, "kind", "in 0..{}".format(len(_KINDS) - 1), kind, advice)
    advice = "divide the sum yourself for a mean"
    check(reduction in (_NONE, _SUM), _NAME, "reduction", "0 (none) or 2 (sum)", reduction, advice)


def _losses(pred, target, weight, kind):
    """Weighted losses [M] in the dtype of `pred`, the compute dtype."""
    # the face of the operator has the formulas for arguments whose gradients the kernels do not give
    from fcos_core.layers.iou_loss import composed_losses

    target = target.to(pred.dtype)
    if weight is None:
        return composed_losses(pred, target, _KINDS[kind])
    # a box of weight 0 is not looked at: ones take its place, so that no infinity meets the zero
    unseen = weight == 0
    pred, target = (boxes.masked_fill(unseen[:, None], 1.0) for boxes in (pred, target))
    return composed_losses(pred, target, _KINDS[kind]) * weight.to(pred.dtype)
