"""Old names of box voting, against recorded runs."""
import pytest
import torch

from fcos_core.engine.bbox_aug_vote import bbox_vote, boxlist_nms, merge_result_from_multi_scales, remove_boxes
from fcos_core.structures.bounding_box import BoxList
from tests.golden import recipe

GOLDEN = recipe.Golden("old_pieces.npz")


def all_boxes(labels=None):
    boxlist = BoxList(torch.from_numpy(GOLDEN["vote/boxes"]), (1000, 1000))
    boxlist.add_field("scores", torch.from_numpy(GOLDEN["vote/scores"]))
    if labels is not None:
        boxlist.add_field("labels", labels)
    return boxlist


def by_score(boxlist):
    order = boxlist.get_field("scores").argsort(descending=True)
    return boxlist[order]


@pytest.mark.parametrize("merge_type", ["nms", "vote", "soft-vote"])
def test_merging_of_classes_golden(merge_type):
    boxlist = all_boxes(torch.from_numpy(GOLDEN["vote/merge_labels"]))
    merged = by_score(merge_result_from_multi_scales([boxlist], merge_type, 0.66)[0])
    record = "vote/merge_{}_0.66/".format(merge_type)
    wanted = BoxList(torch.from_numpy(GOLDEN[record + "boxes"]), (1000, 1000))
    wanted.add_field("scores", torch.from_numpy(GOLDEN[record + "scores"]))
    wanted.add_field("labels", torch.from_numpy(GOLDEN[record + "labels"]))
    wanted = by_score(wanted)
    assert len(merged) == len(wanted)
    recipe.assert_close(merged.get_field("scores"), wanted.get_field("scores"), 1e-6, "scores")
    recipe.assert_close(merged.bbox, wanted.bbox, 1e-5, "boxes")
    assert merged.get_field("labels").tolist() == wanted.get_field("labels").tolist()
    assert len(merge_result_from_multi_scales([boxlist], merge_type, 0.66, limit=7)[0]) == 7


def test_one_class():
    boxlist = all_boxes()
    voted = by_score(boxlist_nms(boxlist, 0.6, nms_type="vote", vote_thresh=0.65))
    boxes, scores = bbox_vote(boxlist.bbox, boxlist.get_field("scores"), 0.65)
    assert torch.equal(voted.get_field("scores"), scores.sort(descending=True)[0]) and len(voted) == len(boxes) < 90
    assert len(boxlist_nms(boxlist, 0.6, max_proposals=5)) == 5 and boxlist_nms(boxlist, 0.0) is boxlist
    boxlist.add_field("labels", torch.full((90,), 3))
    boxlist.add_field("objectness", boxlist.get_field("scores"))
    kept = boxlist_nms(boxlist, 0.6, score_field="objectness")
    assert set(kept.get_field("labels").tolist()) == {3} and kept.has_field("objectness")


def test_boxes_of_a_range_of_areas_golden():
    (kept,) = remove_boxes([all_boxes()], 50, 80)
    recipe.assert_close(kept.bbox, GOLDEN["vote/remove_boxes_50_80"], 1e-6, "boxes")
