"""Old names of multi-scale testing with a vote; what they did is in bbox_aug.py and structures/box_voting.py."""
import torch

from fcos_core.structures.box_voting import bbox_vote, soft_bbox_vote

from .bbox_aug import (
    im_detect_bbox,
    im_detect_bbox_aug,
    im_detect_bbox_hflip,
    im_detect_bbox_scale,
    keep_areas,
    keep_best,
    merge_boxes,
)

__all__ = [
    "bbox_vote",
    "boxlist_nms",
    "im_detect_bbox",
    "im_detect_bbox_aug_vote",
    "im_detect_bbox_hflip",
    "im_detect_bbox_scale",
    "merge_result_from_multi_scales",
    "remove_boxes",
    "soft_bbox_vote",
]

# The settings say whether there is a vote.
im_detect_bbox_aug_vote = im_detect_bbox_aug


def remove_boxes(boxlist_ts, min_scale, max_scale):
    """See bbox_aug.keep_areas; a list of BoxLists."""
    return [keep_areas(boxlist, min_scale, max_scale) for boxlist in boxlist_ts]


def boxlist_nms(boxlist, nms_thresh, max_proposals=-1, score_field="scores", nms_type="nms", vote_thresh=0.65,
                score_thresh=0.05):  # fmt: skip
    """Merge overlapping boxes of one class.

    Args:
        boxlist: BoxList with a field of scores [M].
        nms_thresh: of nms_type "nms"; at or below 0 the BoxList is returned unchanged.
        max_proposals: at most this many boxes, the first ones, if positive.
        score_field: name of the field of scores.
        nms_type: "nms", "vote", or anything else for a soft vote.
        vote_thresh: IoU from which on boxes vote together.
        score_thresh: of the members of a soft vote.

    Returns:
        BoxList with the field of scores, and labels if the input has them (they are those of one class).
    """
    if nms_thresh <= 0:
        return boxlist
    labels = boxlist.get_field("labels") if boxlist.has_field("labels") else None
    one_class = boxlist.copy_with_fields([])
    one_class.add_field("scores", boxlist.get_field(score_field))
    one_class.add_field("labels", torch.zeros(len(boxlist), dtype=torch.int64, device=boxlist.bbox.device))
    merged = merge_boxes(one_class.convert("xyxy"), nms_type, nms_thresh, vote_thresh, score_thresh)
    merged = merged[:max_proposals] if max_proposals > 0 else merged
    result = merged.copy_with_fields([]).convert(boxlist.mode)
    result.add_field(score_field, merged.get_field("scores"))
    if labels is not None:
        result.add_field("labels", labels[:1].expand(len(result)).clone())
    return result


def merge_result_from_multi_scales(boxlists, nms_type="nms", vote_thresh=0.65, nms_thresh=0.6, limit=1000,
                                   score_thresh=0.05):  # fmt: skip
    """Merge the boxes of all passes, class by class, and keep the best.

    Args:
        boxlists: list of N BoxLists with fields "scores" and "labels", the boxes of all passes of each image.
        nms_type, vote_thresh, score_thresh: see `boxlist_nms`.
        nms_thresh: of nms_type "nms" (MODEL.ATSS.NMS_TH).
        limit: boxes kept of an image (MODEL.ATSS.PRE_NMS_TOP_N).

    Returns:
        list of N BoxLists.
    """
    merged = [merge_boxes(boxlist, nms_type, nms_thresh, vote_thresh, score_thresh) for boxlist in boxlists]
    return [keep_best(boxlist, limit) for boxlist in merged]
