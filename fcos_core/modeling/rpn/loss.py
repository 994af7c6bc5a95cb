"""Losses of class-less anchors with sampling: a part for own heads; none of this package's uses it.

Reference: Ren et al., Faster R-CNN, arXiv:1506.01497, section 3.1.2.
"""
import torch
from torch.nn import functional as F

from fcos_core.layers import smooth_l1_loss
from fcos_core.modeling.balanced_positive_negative_sampler import BalancedPositiveNegativeSampler
from fcos_core.modeling.matcher import Matcher
from fcos_core.modeling.rpn.utils import concat_box_prediction_layers
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.boxlist_ops import boxlist_iou, cat_boxlist


class RPNLossComputation(object):
    """Match anchors with boxes, sample, and compute the two losses.

    Args:
        proposal_matcher: Matcher.
        fg_bg_sampler: BalancedPositiveNegativeSampler.
        box_coder: encodes boxes relative to anchors.
        generate_labels_func: BoxList of matched targets -> labels [R] of matched anchors, see `generate_rpn_labels`.

    Attributes:
        copied_fields: fields of the targets that generate_labels_func looks at.
        discard_cases: "not_visibility" and "between_thresholds": anchors that count neither as positive nor negative.
    """

    def __init__(self, proposal_matcher, fg_bg_sampler, box_coder, generate_labels_func):
        self.proposal_matcher = proposal_matcher
        self.fg_bg_sampler = fg_bg_sampler
        self.box_coder = box_coder
        self.generate_labels_func = generate_labels_func
        self.copied_fields = []
        self.discard_cases = ["not_visibility", "between_thresholds"]

    def match_targets_to_anchors(self, anchor, target, copied_fields=()):
        """The target of each anchor of an image.

        Args:
            anchor: BoxList of R anchors.
            target: BoxList; may be empty.
            copied_fields: names of fields to carry over.

        Returns:
            BoxList of R boxes with these fields and "matched_idxs", see Matcher; where that is negative the box means
            nothing.
        """
        matches = self.proposal_matcher(boxlist_iou(target, anchor))
        target = target.convert("xyxy").copy_with_fields(list(copied_fields))
        if len(target) == 0:
            matched = BoxList(torch.zeros_like(anchor.bbox), target.size)
            for field in copied_fields:
                matched.add_field(field, torch.zeros_like(matches))
        else:
            matched = target[matches.clamp(min=0)]
        matched.add_field("matched_idxs", matches)
        return matched

    def prepare_targets(self, anchors, targets):
        """Targets image by image: labels (list of N float32 [R]; 0 background, -1 discarded) and encoded boxes.

        Args:
            anchors: list of N BoxLists, fields "visibility".
            targets: list of N BoxLists.
        """
        labels, regression = [], []
        for anchor, target in zip(anchors, targets):
            matched = self.match_targets_to_anchors(anchor, target, self.copied_fields)
            matches = matched.get_field("matched_idxs")
            label = self.generate_labels_func(matched).to(torch.float32)
            label = label.masked_fill(matches == Matcher.BELOW_LOW_THRESHOLD, 0.0)
            if "not_visibility" in self.discard_cases:
                label = label.masked_fill(~anchor.get_field("visibility"), -1.0)
            if "between_thresholds" in self.discard_cases:
                label = label.masked_fill(matches == Matcher.BETWEEN_THRESHOLDS, -1.0)
            # what no box belongs to encodes itself: finite, and not looked at
            boxes = torch.where((matches >= 0)[:, None], matched.bbox, anchor.bbox)
            labels.append(label)
            regression.append(self.box_coder.encode(boxes, anchor.bbox))
        return labels, regression

    def __call__(self, anchors, objectness, box_regression, targets):
        """Compute the losses.

        Args:
            anchors: list of N lists of L BoxLists, as AnchorGenerator returns them.
            objectness: list of L tensors [N, A, H_l, W_l], logits.
            box_regression: list of L tensors [N, A * 4, H_l, W_l], encoded boxes.
            targets: list of N BoxLists.

        Returns:
            (objectness, regression) scalar tensors: means over the sampled anchors.
        """
        labels, encoded = self.prepare_targets([cat_boxlist(list(levels)) for levels in anchors], targets)
        positive, negative = (torch.cat(masks) for masks in self.fg_bg_sampler(labels))
        logits, regression = concat_box_prediction_layers(objectness, box_regression)
        labels, encoded = torch.cat(labels), torch.cat(encoded)
        sampled = positive | negative
        count = max(int(sampled.sum()), 1)
        loss_box = smooth_l1_loss(regression[positive], encoded[positive], beta=1.0 / 9, size_average=False)
        loss_objectness = F.binary_cross_entropy_with_logits(
            logits.squeeze(1)[sampled], labels[sampled], reduction="sum"
        )
        return loss_objectness / count, loss_box / count


def generate_rpn_labels(matched_targets):
    """1 for every anchor that has a box, else 0: [R]."""
    return matched_targets.get_field("matched_idxs") >= 0


def make_rpn_loss_evaluator(cfg, box_coder):
    """The RPNLossComputation that MODEL.RPN describes."""
    options = cfg.MODEL.RPN
    return RPNLossComputation(
        Matcher(options.FG_IOU_THRESHOLD, options.BG_IOU_THRESHOLD, allow_low_quality_matches=True),
        BalancedPositiveNegativeSampler(options.BATCH_SIZE_PER_IMAGE, options.POSITIVE_FRACTION),
        box_coder,
        generate_rpn_labels,
    )
