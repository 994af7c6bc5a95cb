"""Losses of FCOS (arXiv:1904.01355, section 3.1 and 3.3) over a whole batch, without leaving the device."""
import torch

from fcos_core.layers.iou_loss import IOULoss, iou_loss
from fcos_core.modeling.rpn.fcos.targets import INF, centerness_targets, fcos_targets, size_ranges
from fcos_core.modeling.rpn.levels import flatten_levels, pad_targets, per_location
from fcos_core.modeling.rpn.losses import centerness_losses, full_precision

__all__ = ["FCOSLossComputation", "INF", "make_fcos_loss_evaluator"]


class FCOSLossComputation(object):
    """Assign targets and compute the three losses.

    Args:
        cfg: reads MODEL.FCOS.{LOSS_GAMMA, LOSS_ALPHA, FPN_STRIDES, CENTER_SAMPLING_RADIUS, IOU_LOSS_TYPE,
            NORM_REG_TARGETS}.
    """

    def __init__(self, cfg):
        self.gamma = cfg.MODEL.FCOS.LOSS_GAMMA
        self.alpha = cfg.MODEL.FCOS.LOSS_ALPHA
        self.fpn_strides = list(cfg.MODEL.FCOS.FPN_STRIDES)
        self.center_sampling_radius = cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS
        self.iou_loss_type = cfg.MODEL.FCOS.IOU_LOSS_TYPE
        self.norm_reg_targets = cfg.MODEL.FCOS.NORM_REG_TARGETS
        # Checks the name of the loss when the model is built, not at the first batch.
        self.box_reg_loss_func = IOULoss(self.iou_loss_type)

    def batch_targets(self, locations, targets):
        """Targets of a batch.

        Args:
            locations: list of L tensors [R_l, 2].
            targets: list of N BoxLists with field "labels".

        Returns:
            labels [N, R] int64 and distances [N, R, 4], in strides if NORM_REG_TARGETS, else in pixels.
        """
        counts = [len(level) for level in locations]
        points = torch.cat(locations, dim=0)
        strides = per_location(self.fpn_strides, counts, points.device, points.dtype)
        ranges = per_location(size_ranges(len(counts)), counts, points.device, points.dtype)
        boxes, labels = pad_targets(targets, points.dtype, points.device)
        labels, distances = fcos_targets(points, strides, ranges, boxes, labels, self.center_sampling_radius)
        if self.norm_reg_targets:
            distances = distances / strides[None, :, None]
        return labels, distances

    def prepare_targets(self, points, targets):
        """Targets level by level, inside a level image by image (the historical order).

        Returns:
            list of L tensors [N * R_l] and list of L tensors [N * R_l, 4].
        """
        counts = [len(level) for level in points]
        labels, distances = self.batch_targets(points, targets)
        return (
            [level.reshape(-1) for level in labels.split(counts, dim=1)],
            [level.reshape(-1, 4) for level in distances.split(counts, dim=1)],
        )

    def compute_centerness_targets(self, reg_targets):
        """See targets.centerness_targets."""
        return centerness_targets(reg_targets)

    def __call__(self, locations, box_cls, box_regression, centerness, targets):
        """Compute the losses.

        Args:
            locations: list of L tensors [R_l, 2] (x, y) pixels.
            box_cls: list of L tensors [N, C, H_l, W_l], logits.
            box_regression: list of L tensors [N, 4, H_l, W_l], distances in the unit of the targets.
            centerness: list of L tensors [N, 1, H_l, W_l], logits.
            targets: list of N BoxLists with field "labels".

        Returns:
            (classification, regression, centerness) scalar tensors.  Normalisers are averages over all processes; a
            batch without any positive location gives zero for the last two, still attached to the graph.
        """
        regression = full_precision(flatten_levels(box_regression))
        locations = [level.to(regression.dtype) for level in locations]
        labels, distances = self.batch_targets(locations, targets)

        # Outside the positives the weight is 0, and the loss then looks at no distance.
        weights = centerness_targets(distances).masked_fill(labels <= 0, 0.0)
        return centerness_losses(
            full_precision(flatten_levels(box_cls)),
            iou_loss(regression, distances, self.iou_loss_type, weights, "sum"),
            full_precision(flatten_levels(centerness)).squeeze(2),
            labels,
            weights,
            self.gamma,
            self.alpha,
        )


def make_fcos_loss_evaluator(cfg):
    """The loss of the FCOS head that `cfg` describes."""
    return FCOSLossComputation(cfg)
