"""Sigmoid focal loss of tensor operations of torch; csrc/sigmoid_focal_loss/sigmoid_focal_loss.h has the formulas."""

import math

import torch

from fcos_core.layers._fallback.checks import (
    autocast_dtype,
    check,
    check_floating,
    check_given,
    check_grad_of_losses,
    check_integral,
    check_same_device,
    check_shape,
    compute_dtype,
    differentiable_once,
    without_autocast,
)

_NAME = "sigmoid_focal_loss"
_NONE, _SUM = 0, 2
# logits at a time; bounds what is held between steps
_MAX_ELEMENTS = 2**22


def sigmoid_focal_loss(logits, targets, gamma, alpha, reduction):
    """See `fcos_core.layers.sigmoid_focal_loss`; reduction is 0 (none) or 2 (sum)."""
    check_given(_NAME, logits=logits, targets=targets)
    # autocast gives float32 losses, like torch's own
    if reduction == _NONE and autocast_dtype(logits) is not None:
        logits = logits.to(compute_dtype(logits))
    return _SigmoidFocalLoss.apply(logits, targets, gamma, alpha, reduction)


class _SigmoidFocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, gamma, alpha, reduction):
        _check(logits, targets, gamma, alpha, reduction)
        ctx.save_for_backward(logits, targets)
        ctx.numbers = (gamma, alpha, reduction)
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        losses = None if reduction == _SUM else torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        for rows in _steps(logits):
            values = _values(logits[rows], targets[rows], gamma, alpha, slope=False)
            if reduction == _SUM:
                total += values.sum(dtype=torch.float64)
            else:
                losses[rows] = values.to(losses.dtype)
        # a sum of many half-precision losses exceeds 65504 easily
        return total.to(compute_dtype(logits)) if reduction == _SUM else losses

    @staticmethod
    @differentiable_once(_NAME)
    def backward(ctx, grad):
        return (_sigmoid_focal_loss_backward(grad, *ctx.saved_tensors, *ctx.numbers),) + (None,) * 4


def _sigmoid_focal_loss_backward(grad, logits, targets, gamma, alpha, reduction):
    check_given(_NAME, grad=grad, logits=logits, targets=targets)
    _check(logits, targets, gamma, alpha, reduction)
    check_grad_of_losses(_NAME, grad, "logits", logits, reduction == _SUM, logits.shape, "[R, C], as logits")
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    with torch.no_grad(), without_autocast(logits):
        for rows in _steps(logits):
            values = _values(logits[rows], targets[rows], gamma, alpha, slope=True)
            factor = grad.reshape(()) if reduction == _SUM else grad[rows]
            grad_logits[rows] = (values * factor.to(values.dtype)).to(grad_logits.dtype)
    return grad_logits


def _check(logits, targets, gamma, alpha, reduction):
    check_floating(_NAME, "logits", logits)
    check_integral(_NAME, "targets", targets)
    check_shape(_NAME, "logits", logits, logits.dim() == 2, "[R, C]")
    fits = targets.dim() == 1 and targets.shape[0] == logits.shape[0]
    check_shape(_NAME, "targets", targets, fits, "[R], one per row of logits")
    check_same_device(_NAME, "targets", targets, "logits", logits)
    fits = gamma >= 0 and math.isfinite(gamma)
    check(fits, _NAME, "gamma", "to be finite and at least 0", float(gamma), "the paper uses 2")
    advice = "the paper uses 0.25; gamma comes before alpha"
    check(0 <= alpha <= 1, _NAME, "alpha", "in [0, 1]", float(alpha), advice)
    advice = "divide the sum yourself for a mean"
    check(reduction in (_NONE, _SUM), _NAME, "reduction", "0 (none) or 2 (sum)", reduction, advice)
    if targets.device.type == "cpu":  # a GPU would have to be waited for; there the row becomes NaN
        _check_values(targets, logits.shape[1])


def _check_values(targets, num_classes):
    bad = (targets < -1) | (targets > num_classes)
    if bad.any():
        row = int(bad.nonzero(as_tuple=True)[0][0])
        check(
            False,
            _NAME,
            "targets",
            "in -1..{} (-1 ignored, 0 background)".format(num_classes),
            "{} at row {}".format(int(targets[row]), row),
            "check the labels and the number of classes",
        )


def _steps(logits):
    """Slices of rows."""
    step = max(1, _MAX_ELEMENTS // max(1, logits.shape[1]))
    return [slice(begin, begin + step) for begin in range(0, logits.shape[0], step)]


def _values(logits, targets, gamma, alpha, slope):
    """Losses [R, C], or their derivatives, in the compute dtype."""
    num_classes = logits.shape[1]
    x, targets = logits.to(compute_dtype(logits)), targets.long()[:, None]
    right = targets == torch.arange(1, num_classes + 1, device=targets.device)
    z = torch.where(right, -x, x)
    log1p_u = (-z.abs()).exp().log1p()
    softplus = z.clamp(min=0) + log1p_u
    # q^gamma by its logarithm, which is exact where q has rounded to 0 or 1
    modulation = ((z.clamp(max=0) - log1p_u) * gamma).exp()
    if slope:
        values = modulation * (z.sigmoid() + (-z).sigmoid() * softplus * gamma)
        # the derivative of z is -1 where the class is right
        values = values * torch.where(right, torch.full_like(x, -alpha), torch.full_like(x, 1 - alpha))
    else:
        values = modulation * softplus
        values = values * torch.where(right, torch.full_like(x, alpha), torch.full_like(x, 1 - alpha))
    values = values.masked_fill(targets == -1, 0)
    return values.masked_fill((targets < -1) | (targets > num_classes), math.nan)
