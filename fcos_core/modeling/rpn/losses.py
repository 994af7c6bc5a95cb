"""What the losses of the dense heads share.

Sums run over all locations (or anchors) with zero weight outside the positives: picking the positives out would make
the host wait for their number.  Where a location costs much, they run over as many of them as can be positive.
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


def normalisers(positive, weights):
    """Number of positives and sum of their weights, averages over all processes, fit to divide by.

    Args:
        positive: bool [N, R].
        weights: [N, R], 0 outside the positives.

    Returns:
        (number, at least 1; sum, 1 where it is 0) scalar tensors without gradient.
    """
    # One all-reduce for both, issued by every process whether it has positives or not.
    totals = torch.stack((positive.sum().to(weights.dtype), weights.detach().sum()))
    num_positive, weight_sum = reduce_mean(totals).unbind()
    # Zero only if no process has a positive; then the sum above it is zero as well.
    return num_positive.clamp(min=1.0), torch.where(weight_sum > 0, weight_sum, torch.ones_like(weight_sum))


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
    num_positive, weight_sum = normalisers(positive, weights)
    loss_cls = focal_loss_sum(logits, labels, gamma, alpha)
    # A number stands in outside the positives, so that no infinity can turn a zero weight into a NaN.
    loss_centerness = F.binary_cross_entropy_with_logits(
        centerness.masked_fill(~positive, 0.0), weights, weight=positive.to(weights.dtype), reduction="sum"
    )
    return loss_cls / num_positive, box_loss / weight_sum, loss_centerness / num_positive


def positives_first(positive, limit):
    """Indices of `limit` locations of each image, its positives among them.

    Args:
        positive: bool [N, R], at most `limit` of an image are True.
        limit: Python integer: a bound that the host knows, so that it need not wait for the number.

    Returns:
        [N, P] int64, P = min(limit, R) but at least 1; the positives in ascending order, then others.
    """
    num_locations = positive.shape[1]
    order = torch.arange(num_locations, device=positive.device)
    keys = positive.to(order.dtype) * num_locations - order  # no two are equal: the same order on every device
    return keys.topk(min(max(limit, 1), num_locations), dim=1)[1]


def take(values, index):
    """Rows of values [N, R, ...] at index [N, P]: [N, P, ...]."""
    if values.dim() == 2:
        return values.gather(1, index)
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def quality_focal_loss_sum(logits, index, labels, quality, beta):
    """Summed quality focal loss: the class logit of a positive learns its quality, all others learn 0.

    With p = sigmoid(logit) and wanted value y: ``-|y - p|^beta * ((1 - y) log(1 - p) + y log(p))``.

    Args:
        logits: [N, R, C].
        index: [N, P] int64, the locations that can be positive.
        labels: [N, P] int64, 1..C, 0: not positive.
        quality: [N, P] in [0, 1], without gradient; counts at positives only.
        beta: exponent.

    Reference: Li et al., Generalized Focal Loss, arXiv:2006.04388, section 3, "quality focal loss".
    """
    # Where y = 0, this is the focal loss without its positive part, one fused operator ...
    background = labels.new_zeros(logits.shape[0] * logits.shape[1])
    everything = sigmoid_focal_loss(logits.reshape(-1, logits.shape[2]), background, beta, 0.0, "sum")
    # ... and few pairs of location and class want something else.
    positive = labels > 0
    chosen = take(logits, index).gather(2, (labels - 1).clamp(min=0)[:, :, None]).squeeze(2)
    chosen = chosen.masked_fill(~positive, 0.0)
    loss = _quality_focal_loss(chosen, quality, beta) - _quality_focal_loss(chosen, torch.zeros_like(quality), beta)
    return everything + loss.masked_fill(~positive, 0.0).sum()


def _quality_focal_loss(logits, quality, beta):
    """Quality focal loss of each logit."""
    modulation = (quality - logits.sigmoid()).abs().pow(beta)
    return modulation * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def continuous_iou(boxes1, boxes2):
    """IoU of boxes that belong together, two of [..., 4] xyxy -> [...] in [0, 1]; no pixel is added, as in giou_loss.

    Inverted boxes count as boxes without extent.
    """
    (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes1.unbind(-1), boxes2.unbind(-1)
    width, height = torch.min(x2, u2) - torch.max(x1, u1), torch.min(y2, v2) - torch.max(y1, v1)
    overlap = width.clamp(min=0) * height.clamp(min=0)
    areas = (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0) + (u2 - u1).clamp(min=0) * (v2 - v1).clamp(min=0)
    return overlap / (areas - overlap + 1e-7)
