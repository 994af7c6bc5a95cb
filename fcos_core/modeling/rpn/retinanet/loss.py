"""Losses of RetinaNet (arXiv:1708.02002, sections 3 and 4) over a whole batch, without leaving the device."""
import torch

from fcos_core.layers import SigmoidFocalLoss, smooth_l1_loss
from fcos_core.modeling.matcher import Matcher
from fcos_core.modeling.rpn.anchor_generator import as_levels
from fcos_core.modeling.rpn.fcos.targets import take_boxes
from fcos_core.modeling.rpn.levels import flatten_levels, pad_targets
from fcos_core.modeling.rpn.losses import full_precision
from fcos_core.utils.overrides import overridden, refuse_overridden


class RetinaNetLossComputation(object):
    """Match anchors with boxes and compute the two losses.

    Args:
        proposal_matcher: Matcher.
        box_coder: encodes boxes relative to anchors.
        generate_labels_func: BoxList of ground truth -> its labels; None: `generate_retinanet_labels`.
        sigmoid_focal_loss: function (logits [K, C], labels [K]) -> summed loss; label 0: background, -1: ignored.
        bbox_reg_beta: where smooth L1 turns from a parabola into a line.
        regress_norm: divides the regression loss.
    """

    def __init__(
        self,
        proposal_matcher,
        box_coder,
        generate_labels_func,
        sigmoid_focal_loss,
        bbox_reg_beta=0.11,
        regress_norm=1.0,
    ):
        self.proposal_matcher = proposal_matcher
        self.box_coder = box_coder
        self.generate_labels_func = generate_labels_func or generate_retinanet_labels
        self.box_cls_loss_func = sigmoid_focal_loss
        self.bbox_reg_beta = bbox_reg_beta
        self.regress_norm = regress_norm
        refuse_overridden(self, RetinaNetLossComputation, "match_targets_to_anchors", "prepare_targets")

    def batch_targets(self, anchors, targets):
        """Targets of a batch.

        Args:
            anchors: [R, 4] xyxy pixels.
            targets: list of N BoxLists with field "labels".

        Returns:
            labels [N, R] int64 (1..C, 0: background, -1: ignored) and boxes [N, R, 4] xyxy pixels, meaningless where
            the label is not positive.
        """
        labels = [self.generate_labels_func(target) for target in targets]
        boxes, labels = pad_targets(targets, anchors.dtype, anchors.device, labels)
        matches = self.proposal_matcher.match(anchors, boxes, labels > 0)
        labels, boxes = take_boxes(matches >= 0, matches.clamp(min=0), boxes, labels)
        return labels.masked_fill(matches == Matcher.BETWEEN_THRESHOLDS, -1), boxes

    def prepare_targets(self, anchors, targets):
        """Targets image by image: list of N tensors [R] and list of N tensors [R, 4], boxes encoded.

        Args:
            anchors: list of L tensors [H_l, W_l, A, 4], or list of N BoxLists of the anchors of all levels.
            targets: list of N BoxLists with field "labels".
        """
        if not isinstance(anchors[0], torch.Tensor):
            anchors = [anchors[0].convert("xyxy").bbox]  # the same for all images
        anchors = torch.cat([level.reshape(-1, 4) for level in anchors])
        labels, boxes = self.batch_targets(anchors, targets)
        return list(labels), list(self.box_coder.encode(boxes, anchors))

    def __call__(self, anchors, box_cls, box_regression, targets):
        """Compute the losses.

        Args:
            anchors: list of L tensors [H_l, W_l, A, 4] xyxy pixels, the same for all images; or list of N lists of L
                BoxLists.
            box_cls: list of L tensors [N, A * C, H_l, W_l], logits.
            box_regression: list of L tensors [N, A * 4, H_l, W_l], encoded boxes.
            targets: list of N BoxLists with field "labels".

        Returns:
            (classification, regression) scalar tensors.

        Note:
            Legacy: the normalisers are those of this process, not averages over all, and the first one counts the
            images besides the positives.
        """
        anchors, _ = as_levels(anchors, box_regression[0].shape[1] // 4)
        per_location = anchors[0].shape[2]
        logits = full_precision(flatten_levels(box_cls, per_location))
        regression = full_precision(flatten_levels(box_regression, per_location))
        labels, encoded = self._targets(anchors, targets, regression.dtype)
        regression = regression.masked_fill((labels <= 0)[:, :, None], 0.0)
        loss_reg = smooth_l1_loss(regression, encoded, self.bbox_reg_beta, size_average=False)
        num_positive = (labels > 0).sum().to(regression.dtype)
        loss_cls = self.box_cls_loss_func(logits.reshape(-1, logits.shape[2]), labels.reshape(-1))
        return loss_cls / (num_positive + len(labels)), loss_reg / (num_positive * self.regress_norm).clamp(min=1.0)

    def _targets(self, anchors, targets, dtype):
        """Labels [N, R] and encoded boxes [N, R, 4], 0 where the label is not positive; see `prepare_targets`."""
        if overridden(self, RetinaNetLossComputation, "prepare_targets"):
            labels, encoded = map(torch.stack, self.prepare_targets(anchors, targets))
            labels = labels.to(torch.int64)
            return labels, encoded.to(dtype).masked_fill((labels <= 0)[:, :, None], 0.0)
        anchors = torch.cat([level.reshape(-1, 4) for level in anchors])
        # float32 as anchors and boxes are stored: what is assigned does not depend on the precision of the model
        labels, boxes = self.batch_targets(anchors.float(), targets)
        anchors = anchors.to(dtype)
        boxes = torch.where((labels <= 0)[:, :, None], anchors, boxes.to(dtype))  # finite, and encoded as 0
        return labels, self.box_coder.encode(boxes, anchors)


def generate_retinanet_labels(matched_targets):
    """The classes of boxes, 1..C: [M]."""
    return matched_targets.get_field("labels")


def make_retinanet_loss_evaluator(cfg, box_coder):
    """The loss of the RetinaNet head that `cfg` describes."""
    options = cfg.MODEL.RETINANET
    return RetinaNetLossComputation(
        Matcher(options.FG_IOU_THRESHOLD, options.BG_IOU_THRESHOLD, allow_low_quality_matches=True),
        box_coder,
        generate_retinanet_labels,
        SigmoidFocalLoss(options.LOSS_GAMMA, options.LOSS_ALPHA),
        bbox_reg_beta=options.BBOX_REG_BETA,
        regress_norm=options.BBOX_REG_WEIGHT,
    )
