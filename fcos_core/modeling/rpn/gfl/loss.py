"""Losses of GFL (arXiv:2006.04388, section 3) over a whole batch, without leaving the device."""
import torch

from fcos_core.layers.iou_loss import giou_loss
from fcos_core.modeling.rpn.atss.targets import Pyramid, assign_atss
from fcos_core.modeling.rpn.fcos.inference import decode_boxes
from fcos_core.modeling.rpn.fcos.targets import distances_to_sides, take_boxes
from fcos_core.modeling.rpn.gfl.distances import distribution_focal_loss, expected_distances
from fcos_core.modeling.rpn.levels import flatten_levels, pad_targets, per_location
from fcos_core.modeling.rpn.losses import (
    continuous_iou,
    full_precision,
    normalisers,
    positives_first,
    quality_focal_loss_sum,
    take,
)


class GFLLossComputation(object):
    """Assign targets as ATSS does and compute the three losses.

    Args:
        cfg: reads MODEL.GFL.{ANCHOR_STRIDES, TOPK, REG_MAX, QUALITY_BETA, REG_LOSS_WEIGHT, DFL_LOSS_WEIGHT}.

    Raises:
        ValueError: REG_MAX below 1.
    """

    def __init__(self, cfg):
        options = cfg.MODEL.GFL
        if options.REG_MAX < 1:
            raise ValueError(
                "GFLLossComputation: expected MODEL.GFL.REG_MAX of at least 1, got {}; take 16".format(options.REG_MAX)
            )
        self.strides = list(options.ANCHOR_STRIDES)
        self.topk = options.TOPK
        self.beta = options.QUALITY_BETA
        self.reg_loss_weight = options.REG_LOSS_WEIGHT
        self.dfl_loss_weight = options.DFL_LOSS_WEIGHT

    def batch_targets(self, pyramid, targets):
        """Targets of a batch.

        Args:
            pyramid: Pyramid.
            targets: list of N BoxLists with field "labels".

        Returns:
            labels [N, R] int64 (1..C, 0: background), boxes [N, R, 4] float32 xyxy pixels, meaningless where the label
            is 0, and the largest number of positives that an image of this batch can have.
        """
        boxes, labels = pad_targets(targets, torch.float32, pyramid.anchors.device)
        assignment = assign_atss(pyramid, boxes, labels, self.topk)
        most = boxes.shape[1] * len(self.strides) * self.topk
        return take_boxes(assignment.positive, assignment.index, boxes, labels) + (most,)

    def __call__(self, box_cls, box_regression, targets, anchors):
        """Compute the losses.

        Args:
            box_cls: list of L tensors [N, C, H_l, W_l], logits.
            box_regression: list of L tensors [N, 4 * (REG_MAX + 1), H_l, W_l], logits.
            targets: list of N BoxLists with field "labels".
            anchors: list of L tensors [H_l, W_l, 1, 4] xyxy pixels, the same for all images.

        Returns:
            (quality focal, GIoU, distribution focal) scalar tensors.  The first one is divided by the number of
            positives, the others are means weighted by the predicted quality of the positives; normalisers are averages
            over all processes.  A batch without any positive gives zero for the last two, still attached to the graph.
        """
        logits = full_precision(flatten_levels(box_cls))
        # float32 as anchors and boxes are stored: what is assigned does not depend on the precision of the model
        pyramid = Pyramid([level.float() for level in anchors], self.strides)
        labels, boxes, most = self.batch_targets(pyramid, targets)

        # 1. from here on, only as many locations as can be positive: [N, P]
        index = positives_first(labels > 0, most)
        labels = take(labels, index)
        positive = labels > 0
        centers = pyramid.centers.to(logits.dtype)[index]
        strides = per_location(self.strides, pyramid.counts, logits.device, logits.dtype)[index][:, :, None]
        # Outside the positives something finite stands in for predictions and boxes.
        regression = take(full_precision(flatten_levels(box_regression)), index)
        regression = regression.masked_fill(~positive[:, :, None], 0.0)
        around = decode_boxes(centers, strides.expand(-1, -1, 4))
        boxes = torch.where(positive[:, :, None], take(boxes, index).to(logits.dtype), around)

        # 2. boxes and their quality
        predicted = decode_boxes(centers, expected_distances(regression) * strides)
        quality = continuous_iou(predicted.detach(), boxes)
        # the predicted quality weighs the losses of the boxes (section 3)
        weights = take(logits.detach(), index).max(dim=2)[0].sigmoid().masked_fill(~positive, 0.0)
        num_positive, weight_sum = normalisers(positive, weights)

        # 3. losses
        loss_cls = quality_focal_loss_sum(logits, index, labels, quality, self.beta) / num_positive
        loss_reg = (weights * giou_loss(predicted, boxes)).sum() / weight_sum
        distances = distances_to_sides(centers, boxes) / strides
        loss_dfl = (weights * distribution_focal_loss(regression, distances)).sum() / weight_sum
        return loss_cls, loss_reg * self.reg_loss_weight, loss_dfl * self.dfl_loss_weight


def make_gfl_loss_evaluator(cfg):
    """The loss of the GFL head that `cfg` describes."""
    return GFLLossComputation(cfg)
