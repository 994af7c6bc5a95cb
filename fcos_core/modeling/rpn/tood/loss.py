"""Losses of TOOD (arXiv:2108.07755, section 3.2) over a whole batch, without leaving the device."""
import torch
import torch.nn.functional as F

from fcos_core.layers.iou_loss import giou_loss
from fcos_core.modeling.rpn.fcos.inference import decode_boxes
from fcos_core.modeling.rpn.fcos.targets import take_boxes
from fcos_core.modeling.rpn.levels import flatten_levels, pad_targets, per_location
from fcos_core.modeling.rpn.losses import full_precision, positives_first, quality_focal_loss_sum, take
from fcos_core.modeling.rpn.tood.targets import assign_aligned
from fcos_core.utils.comm import reduce_mean


class TOODLossComputation(object):
    """Assign targets by the alignment of the predictions and compute the two losses.

    Args:
        cfg: reads MODEL.TOOD.{FPN_STRIDES, TOPK, ALIGN_ALPHA, ALIGN_BETA, LOSS_GAMMA, REG_LOSS_WEIGHT}.
    """

    def __init__(self, cfg):
        options = cfg.MODEL.TOOD
        self.strides = list(options.FPN_STRIDES)
        self.topk = options.TOPK
        self.alpha = options.ALIGN_ALPHA
        self.beta = options.ALIGN_BETA
        self.gamma = options.LOSS_GAMMA
        self.reg_loss_weight = options.REG_LOSS_WEIGHT

    def batch_targets(self, locations, logits, predicted, targets):
        """Targets of a batch.

        Args:
            locations: [R, 2] (x, y) pixels.
            logits: [N, R, C].
            predicted: [N, R, 4] xyxy pixels.
            targets: list of N BoxLists with field "labels".

        Returns:
            labels [N, R] int64 (1..C, 0: background), boxes [N, R, 4] xyxy pixels, meaningless where the label is 0,
            quality [N, R] that the class must predict, and the largest number of positives that an image of this batch
            can have.
        """
        boxes, labels = pad_targets(targets, predicted.dtype, predicted.device)
        log_probabilities = F.logsigmoid(logits.detach())
        assignment, quality = assign_aligned(
            locations, log_probabilities, predicted.detach(), boxes, labels, self.topk, self.alpha, self.beta
        )
        most = boxes.shape[1] * self.topk
        return take_boxes(assignment.positive, assignment.index, boxes, labels) + (quality, most)

    def __call__(self, locations, box_cls, box_regression, targets):
        """Compute the losses.

        Args:
            locations: list of L tensors [R_l, 2] (x, y) pixels.
            box_cls: list of L tensors [N, C, H_l, W_l], logits.
            box_regression: list of L tensors [N, 4, H_l, W_l], distances in strides.
            targets: list of N BoxLists with field "labels".

        Returns:
            (classification, GIoU) scalar tensors, both divided by the sum of the qualities (at least 1), an average
            over all processes.  A batch without any positive gives zero for the second, still attached to the graph.
        """
        logits = full_precision(flatten_levels(box_cls))
        counts = [len(level) for level in locations]
        centers = torch.cat(locations).to(logits.dtype)
        strides = per_location(self.strides, counts, logits.device, logits.dtype)
        distances = full_precision(flatten_levels(box_regression)) * strides[:, None]
        predicted = decode_boxes(centers[None], distances)
        labels, boxes, quality, most = self.batch_targets(centers, logits, predicted, targets)

        # from here on, only as many locations as can be positive: [N, P]
        index = positives_first(labels > 0, most)
        labels, quality = take(labels, index), take(quality, index)
        outside = (labels <= 0)[:, :, None]
        # Outside the positives something finite stands in for predictions and boxes.
        boxes = take(boxes, index).masked_fill(outside, 1.0)
        predicted = take(predicted, index).masked_fill(outside, 1.0)
        total = reduce_mean(quality.sum()).clamp(min=1.0)
        loss_cls = quality_focal_loss_sum(logits, index, labels, quality, self.gamma) / total
        loss_reg = (quality * giou_loss(predicted, boxes)).sum() / total
        return loss_cls, loss_reg * self.reg_loss_weight


def make_tood_loss_evaluator(cfg):
    """The loss of the TOOD head that `cfg` describes."""
    return TOODLossComputation(cfg)
