"""Proposals from objectness and anchors, level by level: a part for own heads; none of this package's uses it.

Reference: Ren et al., Faster R-CNN, arXiv:1506.01497, section 3.3.
"""
import torch
from torch import nn

from fcos_core.modeling.box_coder import BoxCoder
from fcos_core.modeling.rpn.levels import flatten_levels
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.boxlist_ops import boxlist_nms, cat_boxlist, remove_small_boxes


class RPNPostProcessor(nn.Module):
    """Turn class-less predictions into proposals.

    Args:
        pre_nms_top_n: candidates kept on each level of an image.
        post_nms_top_n: proposals kept on each level of an image.
        nms_thresh: IoU above which the lower-scored of two boxes is dropped.
        min_size: smallest inclusive width and height, pixels.
        box_coder: decodes boxes relative to anchors; default BoxCoder((1, 1, 1, 1)).
        fpn_post_nms_top_n: proposals kept over all levels; default post_nms_top_n.
    """

    def __init__(
        self, pre_nms_top_n, post_nms_top_n, nms_thresh, min_size, box_coder=None, fpn_post_nms_top_n=None
    ):
        super(RPNPostProcessor, self).__init__()
        self.pre_nms_top_n = pre_nms_top_n
        self.post_nms_top_n = post_nms_top_n
        self.nms_thresh = nms_thresh
        self.min_size = min_size
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0)) if box_coder is None else box_coder
        self.fpn_post_nms_top_n = post_nms_top_n if fpn_post_nms_top_n is None else fpn_post_nms_top_n

    def forward(self, anchors, objectness, box_regression, targets=None):
        """Proposals of a batch.

        Args:
            anchors: list of N lists of L BoxLists, as AnchorGenerator returns them.
            objectness: list of L tensors [N, A, H_l, W_l], logits.
            box_regression: list of L tensors [N, A * 4, H_l, W_l], encoded boxes.
            targets: list of N BoxLists; while training they become proposals too.

        Returns:
            list of N BoxLists with field "objectness" (probabilities).
        """
        levels = [self.forward_for_single_feature_map(*each) for each in zip(zip(*anchors), objectness, box_regression)]
        boxlists = [cat_boxlist(list(image)) for image in zip(*levels)]
        if len(levels) > 1:
            boxlists = self.select_over_all_levels(boxlists)
        if self.training and targets is not None:
            boxlists = self.add_gt_proposals(boxlists, targets)
        return boxlists

    def forward_for_single_feature_map(self, anchors, objectness, box_regression):
        """Proposals of one level: list of N BoxLists, best first.

        Args:
            anchors: N BoxLists.
            objectness, box_regression: [N, A, H, W] and [N, A * 4, H, W].
        """
        per_location = objectness.shape[1]
        scores = flatten_levels([objectness], per_location).squeeze(2).sigmoid()
        codes = flatten_levels([box_regression], per_location)
        scores, index = scores.topk(min(self.pre_nms_top_n, scores.shape[1]), dim=1)
        results = []
        for image, anchor in enumerate(anchors):
            boxes = self.box_coder.decode(codes[image, index[image]], anchor.bbox[index[image]])
            boxlist = BoxList(boxes, anchor.size, mode="xyxy")
            boxlist.add_field("objectness", scores[image])
            boxlist = remove_small_boxes(boxlist.clip_to_image(remove_empty=False), self.min_size)
            results.append(boxlist_nms(boxlist, self.nms_thresh, self.post_nms_top_n, score_field="objectness"))
        return results

    def select_over_all_levels(self, boxlists):
        """The best fpn_post_nms_top_n of each image; Legacy: while training, of the whole batch."""
        scores = [boxlist.get_field("objectness") for boxlist in boxlists]
        if not self.training:
            best = [score.topk(min(self.fpn_post_nms_top_n, len(score)))[1] for score in scores]
            return [boxlist[index] for boxlist, index in zip(boxlists, best)]
        lengths = [len(score) for score in scores]
        scores = torch.cat(scores)
        keep = torch.zeros_like(scores, dtype=torch.bool)
        keep[scores.topk(min(self.fpn_post_nms_top_n, len(scores)))[1]] = True
        return [boxlist[mask] for boxlist, mask in zip(boxlists, keep.split(lengths))]

    def add_gt_proposals(self, proposals, targets):
        """Add the boxes of the ground truth, with objectness 1, to the proposals of each image."""
        results = []
        for proposal, target in zip(proposals, targets):
            truth = target.convert("xyxy").copy_with_fields([]).to(proposal.bbox.device)
            truth.add_field("objectness", proposal.get_field("objectness").new_ones(len(truth)))
            results.append(cat_boxlist([proposal, truth]))
        return results


def make_rpn_postprocessor(config, rpn_box_coder, is_train):
    """The RPNPostProcessor that MODEL.RPN describes, by its keys for training or for testing."""
    options, when = config.MODEL.RPN, "TRAIN" if is_train else "TEST"
    return RPNPostProcessor(
        pre_nms_top_n=options["PRE_NMS_TOP_N_" + when],
        post_nms_top_n=options["POST_NMS_TOP_N_" + when],
        nms_thresh=options.NMS_THRESH,
        min_size=options.MIN_SIZE,
        box_coder=rpn_box_coder,
        fpn_post_nms_top_n=options["FPN_POST_NMS_TOP_N_" + when],
    )
