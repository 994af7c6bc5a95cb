"""Losses of FCOS (arXiv:1904.01355, section 3.1 and 3.3) over a whole batch, without leaving the device."""
import torch

from fcos_core.layers.iou_loss import IOULoss, iou_loss
from fcos_core.modeling.rpn.fcos.targets import INF, centerness_targets, fcos_targets, in_center, size_ranges
from fcos_core.modeling.rpn.levels import constants, flatten_levels, pad_targets, per_location
from fcos_core.modeling.rpn.losses import centerness_losses, full_precision
from fcos_core.utils.comm import get_world_size as get_num_gpus
from fcos_core.utils.comm import reduce_sum
from fcos_core.utils.overrides import overridden, refuse_overridden

__all__ = ["FCOSLossComputation", "INF", "get_num_gpus", "make_fcos_loss_evaluator", "reduce_sum"]


class FCOSLossComputation(object):
    """Assign targets and compute the three losses.

    Args:
        cfg: reads MODEL.FCOS.{LOSS_GAMMA, LOSS_ALPHA, FPN_STRIDES, CENTER_SAMPLING_RADIUS, IOU_LOSS_TYPE,
            NORM_REG_TARGETS}.

    Subclasses may have an own assignment: `compute_targets_for_locations` for the whole of it, `prepare_targets` or
    `batch_targets` for what surrounds it.
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
        refuse_overridden(self, FCOSLossComputation, "get_sample_region", "compute_targets_for_locations")

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
        if overridden(self, FCOSLossComputation, "compute_targets_for_locations"):
            self.num_points_per_level = counts
            labels, distances = map(torch.stack, self.compute_targets_for_locations(points, targets, ranges))
        else:
            boxes, labels = pad_targets(targets, points.dtype, points.device)
            labels, distances = fcos_targets(points, strides, ranges, boxes, labels, self.center_sampling_radius)
        if self.norm_reg_targets:
            distances = distances / strides[None, :, None]
        return labels, distances

    def compute_targets_for_locations(self, locations, targets, object_sizes_of_interest):
        """Targets of the locations of all levels, image by image.

        Args:
            locations: [R, 2] (x, y) pixels.
            targets: list of N BoxLists with field "labels".
            object_sizes_of_interest: [R, 2] smallest and largest max(l, t, r, b) of each location, one of
                `size_ranges`.

        Returns:
            list of N tensors [R], labels, and list of N tensors [R, 4], distances in pixels.

        Raises:
            ValueError: with centre sampling, ranges that are those of no level.
        """
        # the range tells the level, and the level its stride
        ranges = constants(size_ranges(len(self.fpn_strides)), locations.dtype, locations.device)
        of_level = object_sizes_of_interest[:, None, 0] == ranges[:, 0]
        if self.center_sampling_radius > 0 and not of_level.any(dim=1).all():
            raise ValueError(
                "FCOSLossComputation.compute_targets_for_locations: expected object_sizes_of_interest to hold rows of "
                "size_ranges({}), which tell the stride of a location, got others; use targets.fcos_targets, which "
                "takes the strides".format(len(self.fpn_strides))
            )
        level = of_level.to(torch.int64).argmax(dim=1)
        strides = constants(self.fpn_strides, locations.dtype, locations.device)[level]
        boxes, labels = pad_targets(targets, locations.dtype, locations.device)
        labels, distances = fcos_targets(
            locations, strides, object_sizes_of_interest, boxes, labels, self.center_sampling_radius
        )
        return list(labels), list(distances)

    def get_sample_region(self, gt, strides, num_points_per, gt_xs, gt_ys, radius=1.0):
        """Which locations lie inside boxes and near their centres.

        Args:
            gt: [M, 4] xyxy pixels.
            strides: L strides, pixels.
            num_points_per: L numbers of locations.
            gt_xs, gt_ys: [R] locations, pixels.
            radius: half side of the square around a centre, strides.

        Returns:
            bool [R, M].
        """
        strides = per_location(strides, num_points_per, gt_xs.device, gt_xs.dtype)
        return in_center(torch.stack((gt_xs, gt_ys), dim=1), strides, gt[None], radius)[0]

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

    def _targets(self, locations, targets):
        """`batch_targets`, or what a subclass has in place of `prepare_targets`, in that form."""
        if not overridden(self, FCOSLossComputation, "prepare_targets"):
            return self.batch_targets(locations, targets)
        labels, distances = self.prepare_targets(locations, targets)
        labels = torch.cat([level.reshape(len(targets), -1) for level in labels], dim=1)
        return labels, torch.cat([level.reshape(len(targets), -1, 4) for level in distances], dim=1)

    def compute_centerness_targets(self, reg_targets):
        """See targets.centerness_targets: [M, 4] -> [M]."""
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
        labels, distances = self._targets(locations, targets)

        # Outside the positives the weight is 0, and the loss then looks at no distance.
        weights = self.compute_centerness_targets(distances.reshape(-1, 4)).view_as(labels)
        weights = weights.masked_fill(labels <= 0, 0.0)
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
