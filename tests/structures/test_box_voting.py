"""Box voting against recorded numbers and a slow version."""
import numpy as np
import pytest
import torch

from fcos_core.structures import box_voting
from fcos_core.structures.box_voting import bbox_vote, soft_bbox_vote
from tests.golden import recipe
from tests.reference.atss import iou

PIECES = recipe.Golden("atss_pieces.npz")
VOTES = {"vote": bbox_vote, "soft": soft_bbox_vote}


def slow(boxes, scores, threshold, soft, score_thresh=0.05):
    """One class; list of (box, score)."""
    left, result = sorted(zip(scores, boxes), key=lambda item: -item[0]), []
    while left:
        best = left[0][1]
        group = [(s, b) for s, b in left if iou(best, b) >= threshold]
        left = [(s, b) for s, b in left if iou(best, b) < threshold]
        total = sum(s for s, _ in group)
        mean = [sum(s * b[i] for s, b in group) / total for i in range(4)]
        result.append((mean if len(group) > 1 else best, group[0][0]))
        if soft and len(group) > 1:
            softened = [(b, s * (1 - iou(best, b))) for s, b in group]
            result += [(b, s) for b, s in softened if s >= score_thresh]
    return result


@pytest.mark.parametrize("kind", sorted(VOTES))
@pytest.mark.parametrize("threshold", ["0.65", "0.66", "0.90"])
def test_votes_golden(kind, threshold):
    boxes, scores = (torch.from_numpy(PIECES["vote/" + key]) for key in ("boxes", "scores"))
    found, kept = VOTES[kind](boxes, scores, float(threshold))
    record = "vote/{}_{}/".format(kind, threshold)
    wanted = PIECES[record + "boxes"], PIECES[record + "scores"]
    assert len(kept) == len(wanted[1])
    same = [np.ones(len(kept))]
    recipe.assert_same_detections([found.numpy(), kept.numpy()] + same, list(wanted) + same, 1e-3, 1e-6)


@pytest.mark.parametrize("kind", ["vote", "soft-vote"])
def test_votes_of_several_classes_golden(kind):
    boxes, scores, labels = (torch.from_numpy(PIECES["vote/" + key]) for key in ("boxes", "scores", "merge_labels"))
    found = VOTES[kind[:4]](boxes, scores, 0.66, labels)
    wanted = [PIECES["vote/merge_{}_0.66/{}".format(kind, key)] for key in ("boxes", "scores", "labels")]
    assert len(found[1]) == len(wanted[1])
    recipe.assert_same_detections([f.numpy() for f in found], wanted, 1e-3, 1e-6)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 60])
def test_votes_are_the_written_procedure(soft, count, device, monkeypatch):
    rng = np.random.RandomState(count)
    corner = rng.uniform(0, 60, (count, 2))
    rows = np.concatenate([corner, corner + rng.uniform(20, 60, (count, 2))], axis=1).astype(np.float32)
    scores, labels = rng.uniform(0.1, 1, count).astype(np.float32), rng.randint(1, 4, count)
    given = [torch.from_numpy(a).to(device) for a in (rows, scores)]
    vote = soft_bbox_vote if soft else bbox_vote
    found = vote(*given, vote_thresh=0.5, labels=torch.from_numpy(labels).to(device))
    wanted = []
    for label in (1, 2, 3):
        mine = labels == label
        slowly = slow(rows[mine].astype(float).tolist(), scores[mine].tolist(), 0.5, soft)
        wanted += [(box, score, label) for box, score in slowly]
    assert len(found[1]) == len(wanted)
    if wanted:
        arrays = [np.array(column) for column in zip(*wanted)]
        recipe.assert_same_detections([f.cpu().numpy() for f in found], arrays, 1e-3, 1e-5)
    monkeypatch.setattr(box_voting, "_MAX_ELEMENTS", 7)
    again = vote(*given, vote_thresh=0.5, labels=torch.from_numpy(labels).to(device))
    assert all(torch.equal(a, b) for a, b in zip(found, again))


def test_the_threshold_belongs_to_the_group():
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 4.0]])  # IoU 0.5
    assert len(bbox_vote(boxes, torch.tensor([0.9, 0.8]), 0.5)[1]) == 1
    assert len(bbox_vote(boxes, torch.tensor([0.9, 0.8]), 0.501)[1]) == 2
