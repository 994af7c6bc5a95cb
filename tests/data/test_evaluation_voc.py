"""VOC evaluation against numbers computed by hand."""

import logging

import numpy as np
import pytest
import torch

from fcos_core.data.datasets.evaluation.voc import do_voc_evaluation, voc_evaluation
from fcos_core.data.datasets.evaluation.voc.voc_eval import (
    calc_detection_voc_ap,
    calc_detection_voc_prec_rec,
    eval_detection_voc,
)
from fcos_core.structures.bounding_box import BoxList

SIZE = (100, 100)


def truth(rows, size=SIZE):
    """rows: (label, x1, y1, x2, y2, difficult)"""
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    result = BoxList(rows[:, 1:5], size)
    result.add_field("labels", rows[:, 0].long())
    result.add_field("difficult", rows[:, 5].to(torch.uint8))
    return result


def found(rows, size=SIZE):
    """rows: (label, x1, y1, x2, y2, score)"""
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    result = BoxList(rows[:, 1:5], size)
    result.add_field("labels", rows[:, 0].long())
    result.add_field("scores", rows[:, 5])
    return result


class TwoPictures(object):
    """What the evaluation asks of a VOC data set."""

    categories = ["cat", "dog"]
    has_annotations = True
    truths = [truth([(1, 0, 0, 49, 49, 0), (2, 50, 50, 99, 99, 0)]), truth([(1, 10, 10, 59, 59, 0)])]

    def __len__(self):
        return len(self.truths)

    def get_img_info(self, index):
        return {"width": SIZE[0], "height": SIZE[1]}

    def get_groundtruth(self, index):
        return self.truths[index]


def test_average_precision_by_hand():
    # Class 1: four objects. By falling score: right, wrong, right, right.
    # precision 1, 1/2, 2/3, 3/4; recall 1/4, 1/4, 1/2, 3/4.
    truths = [truth([(1, 0, 0, 9, 9, 0), (1, 20, 0, 29, 9, 0), (1, 40, 0, 49, 9, 0), (1, 60, 0, 69, 9, 0)])]
    detections = [
        found([(1, 0, 0, 9, 9, 0.9), (1, 80, 80, 89, 89, 0.8), (1, 20, 0, 29, 9, 0.7), (1, 40, 0, 49, 9, 0.6)])
    ]
    prec, rec = calc_detection_voc_prec_rec(truths, detections)
    assert prec[1].tolist() == pytest.approx([1, 1 / 2.0, 2 / 3.0, 3 / 4.0])
    assert rec[1].tolist() == pytest.approx([1 / 4.0, 1 / 4.0, 1 / 2.0, 3 / 4.0])
    # Area: 1 on (0, 1/4], then 3/4 (made monotonous) on (1/4, 3/4].
    assert eval_detection_voc(detections, truths)["ap"][1] == pytest.approx(0.25 + 0.5 * 0.75)
    # 11 points: 1 at 0, 0.1, 0.2; 3/4 at 0.3 to 0.7; 0 at 0.8, 0.9, 1.
    eleven = eval_detection_voc(detections, truths, use_07_metric=True)
    assert eleven["ap"][1] == pytest.approx((3 * 1 + 5 * 0.75) / 11)
    assert np.isnan(eleven["ap"][0]) and eleven["map"] == pytest.approx(eleven["ap"][1])


def test_eleven_points_meet_recalls_that_are_tenths():
    # 10 objects, 3 found: the point 0.3 belongs to the curve although 3 * 0.1 is above 3 / 10 in floating point.
    recall = np.array([1, 2, 3]) / 10.0
    ap = calc_detection_voc_ap([np.ones(3)], [recall], use_07_metric=True)
    assert ap[0] == pytest.approx(4 / 11.0)


def test_scores_are_ordered_over_images():
    truths = [truth([(1, 0, 0, 9, 9, 0)]), truth([(1, 0, 0, 9, 9, 0)])]
    detections = [
        found([(1, 50, 50, 59, 59, 0.2), (1, 0, 0, 9, 9, 0.4)]),
        found([(1, 50, 50, 59, 59, 0.3), (1, 0, 0, 9, 9, 0.9)]),
    ]
    prec, _ = calc_detection_voc_prec_rec(truths, detections)
    assert prec[1].tolist() == pytest.approx([1, 1, 2 / 3.0, 2 / 4.0])


def test_second_detection_of_an_object_is_wrong():
    truths = [truth([(1, 0, 0, 9, 9, 0)])]
    prec, rec = calc_detection_voc_prec_rec(truths, [found([(1, 0, 0, 9, 9, 0.5), (1, 0, 0, 9, 8, 0.9)])])
    assert prec[1].tolist() == pytest.approx([1, 0.5]) and rec[1].tolist() == [1, 1]


def test_difficult_objects_neither_count_nor_hurt():
    truths = [truth([(1, 0, 0, 9, 9, 1), (1, 20, 20, 29, 29, 0)])]
    detections = [found([(1, 0, 0, 9, 9, 0.9), (1, 0, 0, 9, 8, 0.8), (1, 20, 20, 29, 29, 0.7)])]
    prec, rec = calc_detection_voc_prec_rec(truths, detections)
    assert prec[1].tolist() == [0, 0, 1] and rec[1].tolist() == [0, 0, 1]
    assert eval_detection_voc(detections, truths)["map"] == pytest.approx(1.0)


def test_iou_is_that_of_inclusive_pixels():
    # 10 x 10 against 10 x 5 pixels: IoU 0.5 with inclusive sizes (9 x 4 of 9 x 9 = 0.44 without)
    truths, detections = [truth([(1, 0, 0, 9, 9, 0)])], [found([(1, 0, 0, 9, 4, 0.5)])]
    assert eval_detection_voc(detections, truths)["map"] == pytest.approx(1.0)
    assert eval_detection_voc(detections, truths, iou_thresh=0.51)["map"] == 0.0


def test_classes_without_objects_or_detections():
    truths = [truth([(3, 0, 0, 9, 9, 0)])]
    result = eval_detection_voc([found([(2, 0, 0, 9, 9, 0.9)])], truths)
    assert len(result["ap"]) == 4
    assert np.isnan(result["ap"][[0, 1, 2]]).all() and result["ap"][3] == 0.0 and result["map"] == 0.0
    assert np.isnan(eval_detection_voc([found([])], [truth([])])["map"])


def test_numbers_of_images_must_agree():
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        eval_detection_voc([found([])], [truth([]), truth([])])


def test_whole_evaluation_with_coco_metrics_beside(tmp_path, caplog):
    pytest.importorskip("pycocotools")
    logger = logging.getLogger("test.voc")
    # In a frame of twice the size; the second cat is missed.
    detections = [found([(1, 0, 0, 98, 98, 0.9), (2, 100, 100, 198, 198, 0.8)], (200, 200)), found([], (200, 200))]
    with caplog.at_level(logging.INFO):
        result = do_voc_evaluation(TwoPictures(), detections, str(tmp_path), logger)
    # cat: recall 1/2 at precision 1: 6 of 11 points, or half the area; 51 of COCO's 101 points.
    assert result["ap"][1] == pytest.approx(6 / 11.0) and result["ap"][2] == pytest.approx(1.0)
    assert result["map"] == pytest.approx((6 / 11.0 + 1) / 2) and result["map_area"] == pytest.approx(0.75)
    assert result["coco"].results["bbox"]["AP"] == pytest.approx((51 / 101.0 + 1) / 2)
    assert result["AP"] == result["coco"].results["bbox"]["AP"] and result["AP50"] == pytest.approx(result["AP"])
    written = (tmp_path / "result.txt").read_text()
    assert written.startswith("mAP: 0.7727\n") and "cat" in written and "COCO AP50" in written
    assert "mAP: 0.7727" in caplog.text


def test_difficult_objects_are_ignored_by_the_coco_metrics_too():
    pytest.importorskip("pycocotools")

    class OneHard(TwoPictures):
        truths = [truth([(1, 0, 0, 49, 49, 1), (2, 50, 50, 99, 99, 0)])]

    result = do_voc_evaluation(OneHard(), [found([(2, 50, 50, 99, 99, 0.8)])], None, logging.getLogger("test.voc"))
    assert result["coco"].results["bbox"]["AP"] == pytest.approx(1.0) and result["map"] == pytest.approx(1.0)


def test_without_a_scorer_the_voc_metrics_remain(monkeypatch):
    result = do_voc_evaluation(
        TwoPictures(), TwoPictures.truths_as_found, None, logging.getLogger("test.voc"), scorer=None
    )
    assert result["map"] == pytest.approx(1.0) and result["coco"] is None


def test_data_set_without_annotations_gives_a_notice(caplog):
    class Bare(TwoPictures):
        has_annotations = False

    with caplog.at_level(logging.INFO):
        assert voc_evaluation(Bare(), [found([]), found([])], None) == {}
    assert "no annotations" in caplog.text


TwoPictures.truths_as_found = [
    found([(1, 0, 0, 49, 49, 0.9), (2, 50, 50, 99, 99, 0.9)]),
    found([(1, 10, 10, 59, 59, 0.9)]),
]
