"""Losses of ATSS (arXiv:1912.02424, section 4) over a whole batch, without leaving the device."""
import torch

from fcos_core.layers.iou_loss import giou_loss
from fcos_core.modeling.rpn.anchor_generator import as_levels
from fcos_core.modeling.rpn.atss.targets import Pyramid, assign_atss, assign_iou, assign_ssc, assign_topk
from fcos_core.modeling.rpn.fcos.targets import INF, centerness_targets, distances_to_sides, take_boxes
from fcos_core.modeling.rpn.levels import flatten_levels, pad_targets
from fcos_core.modeling.rpn.losses import centerness_losses, full_precision
from fcos_core.utils.comm import get_world_size as get_num_gpus
from fcos_core.utils.comm import reduce_sum
from fcos_core.utils.overrides import overridden, refuse_overridden

__all__ = ["ATSSLossComputation", "INF", "get_num_gpus", "make_atss_loss_evaluator", "reduce_sum"]

POSITIVE_TYPES = ("ATSS", "SSC", "IoU", "TOPK")


class ATSSLossComputation(object):
    """Assign targets and compute the three losses.

    Args:
        cfg: reads MODEL.ATSS.{LOSS_GAMMA, LOSS_ALPHA, POSITIVE_TYPE, TOPK, FG_IOU_THRESHOLD, BG_IOU_THRESHOLD,
            REG_LOSS_WEIGHT, ANCHOR_STRIDES, ASPECT_RATIOS, SCALES_PER_OCTAVE}.
        box_coder: encodes and decodes boxes relative to anchors.

    Raises:
        ValueError: unknown POSITIVE_TYPE.
    """

    def __init__(self, cfg, box_coder):
        options = cfg.MODEL.ATSS
        if options.POSITIVE_TYPE not in POSITIVE_TYPES:
            raise ValueError(
                "ATSSLossComputation: expected MODEL.ATSS.POSITIVE_TYPE one of {}, got {}; correct it".format(
                    ", ".join(POSITIVE_TYPES), options.POSITIVE_TYPE
                )
            )
        self.box_coder = box_coder
        self.gamma = options.LOSS_GAMMA
        self.alpha = options.LOSS_ALPHA
        self.positive_type = options.POSITIVE_TYPE
        self.topk = options.TOPK
        self.iou_thresholds = (options.FG_IOU_THRESHOLD, options.BG_IOU_THRESHOLD)
        self.reg_loss_weight = options.REG_LOSS_WEIGHT
        self.strides = list(options.ANCHOR_STRIDES)
        self.anchors_per_location = len(options.ASPECT_RATIOS) * options.SCALES_PER_OCTAVE
        for name in ("GIoULoss", "compute_centerness_targets"):
            refuse_overridden(self, ATSSLossComputation, name, "__call__")

    def batch_targets(self, targets, anchors):
        """Targets of a batch.

        Args:
            targets: list of N BoxLists with field "labels".
            anchors: list of L tensors [H_l, W_l, A, 4] xyxy pixels.

        Returns:
            labels [N, R] int64 (1..C, 0: background, -1: ignored) and boxes [N, R, 4] float32 xyxy pixels, meaningless
            where the label is not positive.
        """
        # float32 as anchors and boxes are stored: what is assigned does not depend on the precision of the model
        pyramid = Pyramid([level.float() for level in anchors], self.strides)
        boxes, labels = pad_targets(targets, torch.float32, pyramid.anchors.device)
        assignment = self._assign(pyramid, boxes, labels)
        labels, boxes = take_boxes(assignment.positive, assignment.index, boxes, labels)
        return labels.masked_fill(assignment.ignored, -1), boxes

    def _assign(self, pyramid, boxes, labels):
        if self.positive_type == "ATSS":
            return assign_atss(pyramid, boxes, labels, self.topk)
        if self.positive_type == "SSC":
            return assign_ssc(pyramid, boxes, labels)
        if self.positive_type == "IoU":
            return assign_iou(pyramid, boxes, labels, *self.iou_thresholds)
        return assign_topk(pyramid, boxes, labels, self.topk)

    def prepare_targets(self, targets, anchors):
        """Targets image by image: list of N tensors [R] and list of N tensors [R, 4], boxes encoded.

        Args:
            targets: list of N BoxLists with field "labels".
            anchors: see `__call__`.
        """
        anchors, _ = as_levels(anchors, self.anchors_per_location)
        labels, boxes = self.batch_targets(targets, anchors)
        flat = torch.cat([level.reshape(-1, 4) for level in anchors])
        return list(labels), list(self.box_coder.encode(boxes.to(flat.dtype), flat))

    def GIoULoss(self, pred, target, anchor, weight=None):
        """Summed (weighted) loss of encoded boxes [M, 4] against encoded boxes [M, 4] of anchors [M, 4]."""
        boxes = self.box_coder.decode(pred, anchor), self.box_coder.decode(target, anchor)
        return giou_loss(*boxes, weight, "sum")

    def compute_centerness_targets(self, reg_targets, anchors):
        """Centerness of anchors [M, 4] in boxes given encoded, [M, 4]: [M]."""
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        return centerness_targets(distances_to_sides(centers, self.box_coder.decode(reg_targets, anchors)))

    def _targets(self, targets, anchors):
        """`batch_targets`, or what a subclass has in place of `prepare_targets`, in that form."""
        if not overridden(self, ATSSLossComputation, "prepare_targets"):
            return self.batch_targets(targets, anchors)
        labels, encoded = map(torch.stack, self.prepare_targets(targets, anchors))
        flat = torch.cat([level.reshape(-1, 4) for level in anchors])
        return labels, self.box_coder.decode(encoded, flat)

    def __call__(self, box_cls, box_regression, centerness, targets, anchors):
        """Compute the losses.

        Args:
            box_cls: list of L tensors [N, A * C, H_l, W_l], logits.
            box_regression: list of L tensors [N, A * 4, H_l, W_l], encoded boxes.
            centerness: list of L tensors [N, A, H_l, W_l], logits.
            targets: list of N BoxLists with field "labels".
            anchors: list of L tensors [H_l, W_l, A, 4] xyxy pixels, the same for all images; or list of N lists of L
                BoxLists.

        Returns:
            (classification, regression, centerness) scalar tensors; see losses.centerness_losses.
        """
        anchors, _ = as_levels(anchors, box_regression[0].shape[1] // 4)
        per_location = anchors[0].shape[2]
        regression = full_precision(flatten_levels(box_regression, per_location))
        labels, boxes = self._targets(targets, anchors)
        anchors = torch.cat([level.reshape(-1, 4) for level in anchors]).to(regression.dtype)

        # Outside the positives every anchor stands in for its box, and predicts itself, so that everything is finite.
        outside = (labels <= 0)[:, :, None]
        boxes = torch.where(outside, anchors, boxes.to(regression.dtype))
        predicted = self.box_coder.decode(regression.masked_fill(outside, 0.0), anchors)
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        weights = centerness_targets(distances_to_sides(centers, boxes)).masked_fill(outside.squeeze(2), 0.0)
        loss_cls, loss_reg, loss_centerness = centerness_losses(
            full_precision(flatten_levels(box_cls, per_location)),
            giou_loss(predicted, boxes, weights, "sum"),
            full_precision(flatten_levels(centerness, per_location)).squeeze(2),
            labels,
            weights,
            self.gamma,
            self.alpha,
        )
        return loss_cls, loss_reg * self.reg_loss_weight, loss_centerness


def make_atss_loss_evaluator(cfg, box_coder):
    """The loss of the ATSS head that `cfg` describes."""
    return ATSSLossComputation(cfg, box_coder)
