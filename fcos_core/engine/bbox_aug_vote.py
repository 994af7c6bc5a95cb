"""Old names of multi-scale testing with a vote; what they did is in bbox_aug.py and structures/box_voting.py."""
from fcos_core.structures.box_voting import bbox_vote, soft_bbox_vote

from .bbox_aug import im_detect_bbox, im_detect_bbox_aug, im_detect_bbox_hflip, im_detect_bbox_scale, keep_areas

__all__ = [
    "bbox_vote",
    "im_detect_bbox",
    "im_detect_bbox_aug_vote",
    "im_detect_bbox_hflip",
    "im_detect_bbox_scale",
    "remove_boxes",
    "soft_bbox_vote",
]

# The settings say whether there is a vote.
im_detect_bbox_aug_vote = im_detect_bbox_aug


def remove_boxes(boxlist_ts, min_scale, max_scale):
    """See bbox_aug.keep_areas; a list of BoxLists."""
    return [keep_areas(boxlist, min_scale, max_scale) for boxlist in boxlist_ts]
