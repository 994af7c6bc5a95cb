"""What the losses of the dense heads share.

Sums run over all locations (or anchors) with zero weight outside the positives: picking the positives out would make
the host wait for their number.
"""
import torch
import torch.nn.functional as F

from fcos_core.layers import sigmoid_focal_loss
from fcos_core.utils.comm import reduce_mean


def full_precision(tensor):
    """Losses are computed in float32 at least, whatever autocast made of the predictions."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def focal_loss_sum(logits, labels, gamma, alpha):
    """Summed focal loss of logits [N, R, C] against labels [N, R] (0: background, -1: ignored)."""
    return sigmoid_focal_loss(logits.reshape(-1, logits.shape[2]), labels.reshape(-1), gamma, alpha, "sum")


def centerness_losses(logits, box_loss, centerness, labels, weights, gamma, alpha):
    """The three losses of a head that predicts centerness.

    Args:
        logits: [N, R, C].
        box_loss: scalar, sum of the losses of the predicted boxes times `weights`.
        centerness: [N, R] logits.
        labels: [N, R] int64, 1..C: positive, 0: background, -1: ignored.
        weights: [N, R] centerness targets, 0 outside the positives.
        gamma, alpha: of the focal loss.

    Returns:
        (classification, regression, centerness) scalar tensors.  Normalisers are averages over all processes; a batch
        without any positive gives zero for the last two, still attached to the graph.
    """
    positive = labels > 0
    # One all-reduce for both normalisers, issued by every process whether it has positives or not.
    totals = torch.stack((positive.sum().to(weights.dtype), weights.sum()))
    num_positive, weight_sum = reduce_mean(totals).unbind()
    num_positive = num_positive.clamp(min=1.0)
    # Zero only if no process has a positive; then the sum above it is zero as well.
    weight_sum = torch.where(weight_sum > 0, weight_sum, torch.ones_like(weight_sum))

    loss_cls = focal_loss_sum(logits, labels, gamma, alpha)
    # A number stands in outside the positives, so that no infinity can turn a zero weight into a NaN.
    loss_centerness = F.binary_cross_entropy_with_logits(
        centerness.masked_fill(~positive, 0.0), weights, weight=positive.to(weights.dtype), reduction="sum"
    )
    return loss_cls / num_positive, box_loss / weight_sum, loss_centerness / num_positive
