"""COCO evaluation on hand-made cases whose metrics are known, and against pycocotools used directly."""

import json
import logging
import random
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")

from fcos_core.data.datasets.coco import COCODataset  # noqa: E402
from fcos_core.data.datasets.evaluation import evaluate  # noqa: E402
from fcos_core.data.datasets.evaluation.coco import coco_eval, do_coco_evaluation  # noqa: E402
from fcos_core.data.datasets.evaluation.coco.report import format_table, per_class_table  # noqa: E402
from fcos_core.data.datasets.evaluation.coco.results import COCOResults, check_expected_results  # noqa: E402
from fcos_core.data.datasets.evaluation.coco.scorer import load_scorer, score_boxes  # noqa: E402
from fcos_core.structures.bounding_box import BoxList  # noqa: E402

# Category ids with gaps and not starting at 1, as in COCO itself.
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 90, "name": "emu"}]


def write_dataset(folder, boxes_by_image, categories=CATEGORIES, size=(200, 100), with_annotations=True, **extra):
    """boxes_by_image: list over images of (category id, x, y, w, h). Deliberately without info, area, iscrowd, id 0."""
    images = [
        {"id": 10 * (i + 1), "width": size[0], "height": size[1], "file_name": "%d.png" % i}
        for i in range(len(boxes_by_image))
    ]
    annotations = []
    for image, boxes in zip(images, boxes_by_image):
        for category, x, y, w, h in boxes:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    **extra,
                }
            )
    content = {"images": images, "categories": categories}
    if with_annotations:
        content["annotations"] = annotations
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return COCODataset(str(path), str(folder), False)


def boxlist(rows, size=(200, 100), scale=1.0):
    """rows: (label, x, y, w, h, score) in pixels of the original image; the BoxList is in the frame `size * scale`."""
    rows = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    result = BoxList(rows[:, 1:5].float(), size, mode="xywh").convert("xyxy")
    result = result.resize((int(size[0] * scale), int(size[1] * scale)))
    result.add_field("scores", rows[:, 5].float())
    result.add_field("labels", rows[:, 0].long())
    return result


TRUTH = [[(3, 10, 10, 40, 30), (7, 80, 20, 60, 50)], [(7, 0, 0, 100, 99)], []]
PERFECT = [[(1, 10, 10, 40, 30, 0.9), (2, 80, 20, 60, 50, 0.8)], [(2, 0, 0, 100, 99, 0.7)], []]


def run(dataset, predictions, folder=None, **options):
    arguments = {"box_only": False, "iou_types": ("bbox",), "expected_results": (), "expected_results_sigma_tol": 4}
    arguments.update(options)
    return do_coco_evaluation(dataset, predictions, output_folder=folder and str(folder), **arguments)


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.5])
def test_perfect_detections_in_any_frame_score_one(tmp_path, scale):
    dataset = write_dataset(tmp_path, TRUTH)
    results, _ = run(dataset, [boxlist(rows, scale=scale) for rows in PERFECT])
    bbox = results.results["bbox"]
    assert (
        bbox["AP"] == pytest.approx(1.0) and bbox["AP50"] == pytest.approx(1.0) and bbox["AP75"] == pytest.approx(1.0)
    )


def test_half_missed(tmp_path):
    # One class, two objects, one of them found: precision 1 up to recall 0.5, that is at 51 of 101 recall points.
    dataset = write_dataset(tmp_path, [[(3, 10, 10, 40, 30), (3, 100, 20, 60, 50)]])
    results, _ = run(dataset, [boxlist([(1, 10, 10, 40, 30, 0.9)])])
    assert results.results["bbox"]["AP"] == pytest.approx(51 / 101.0)


def test_wrong_class_scores_nothing(tmp_path):
    dataset = write_dataset(tmp_path, [[(3, 10, 10, 40, 30)]])
    results, _ = run(dataset, [boxlist([(2, 10, 10, 40, 30, 0.9)])])
    assert results.results["bbox"]["AP"] == 0.0


def test_a_false_positive_before_the_right_one_halves_precision(tmp_path):
    dataset = write_dataset(tmp_path, [[(3, 10, 10, 40, 30)]])
    results, _ = run(dataset, [boxlist([(1, 100, 50, 40, 30, 0.95), (1, 10, 10, 40, 30, 0.9)])])
    assert results.results["bbox"]["AP50"] == pytest.approx(0.5)


def test_loose_box_counts_only_at_low_iou(tmp_path):
    dataset = write_dataset(tmp_path, [[(3, 10, 10, 100, 50)]])
    # 72 of 100 pixels of the width: IoU 0.72, right at 0.50, 0.55, 0.60, 0.65, 0.70
    results, _ = run(dataset, [boxlist([(1, 10, 10, 72, 50, 0.9)])])
    assert results.results["bbox"]["AP"] == pytest.approx(0.5)
    assert results.results["bbox"]["AP50"] == pytest.approx(1.0) and results.results["bbox"]["AP75"] == 0.0


def test_annotation_id_zero_counts(tmp_path):
    """pycocotools takes a match with annotation 0 for no match; the only object here has that id."""
    dataset = write_dataset(tmp_path, [[(3, 10, 10, 40, 30)]])
    assert dataset.coco.dataset["annotations"][0]["id"] == 0
    results, _ = run(dataset, [boxlist([(1, 10, 10, 40, 30, 0.9)])])
    assert results.results["bbox"]["AP"] == pytest.approx(1.0)


def test_equals_pycocotools_used_directly(tmp_path, capsys):
    from pycocotools.cocoeval import COCOeval

    rng = random.Random(0)
    truth, predictions = [], []
    for _ in range(20):
        boxes = [
            (rng.choice([3, 7, 90]), rng.uniform(0, 120), rng.uniform(0, 50), rng.uniform(4, 70), rng.uniform(4, 45))
            for _ in range(6)
        ]
        truth.append(boxes)
        rows = []
        for category, x, y, w, h in boxes:
            label = {3: 1, 7: 2, 90: 3}[category] if rng.random() < 0.8 else rng.randint(1, 3)
            rows.append(
                (
                    label,
                    x + rng.gauss(0, 2),
                    y + rng.gauss(0, 2),
                    w + rng.gauss(0, 2),
                    h + rng.gauss(0, 2),
                    rng.random(),
                )
            )
        predictions.append(boxlist(rows))
    dataset = write_dataset(tmp_path, truth)
    results, detections = run(dataset, predictions)

    coco = dataset.coco
    for number, annotation in enumerate(coco.dataset["annotations"], 1):
        annotation["id"] = number
    coco.createIndex()
    direct = COCOeval(coco, coco.loadRes([dict(row) for row in detections["bbox"]]), "bbox")
    direct.evaluate()
    direct.accumulate()
    direct.summarize()
    capsys.readouterr()
    assert list(results.results["bbox"].values()) == pytest.approx(direct.stats[:6].tolist(), abs=1e-12)
    assert 0.1 < results.results["bbox"]["AP"] < 0.9  # a case that could tell a difference


def test_json_has_original_ids_and_inclusive_xywh(tmp_path):
    dataset = write_dataset(tmp_path, TRUTH)
    _, detections = run(dataset, [boxlist(rows, scale=2.0) for rows in PERFECT], tmp_path)
    written = json.loads((tmp_path / "bbox.json").read_text())
    assert written == detections["bbox"]
    assert [(row["image_id"], row["category_id"]) for row in written] == [(10, 3), (10, 7), (20, 7)]
    # At scale 2 the corner 49 (10 + 40 - 1) becomes 98, and comes back.
    assert written[0]["bbox"] == pytest.approx([10, 10, 40, 30]) and written[0]["score"] == pytest.approx(0.9)
    assert torch.load(str(tmp_path / "coco_results.pth"))["bbox"]["AP"] == pytest.approx(1.0)


def test_no_detections_at_all_score_zero(tmp_path):
    dataset = write_dataset(tmp_path, TRUTH)
    results, detections = run(dataset, [boxlist([]) for _ in TRUTH], tmp_path)
    assert results.results["bbox"]["AP"] == 0.0 and detections["bbox"] == []
    assert json.loads((tmp_path / "bbox.json").read_text()) == []


def test_data_set_without_annotations_gives_json_and_a_notice(tmp_path, caplog):
    dataset = write_dataset(tmp_path, TRUTH, with_annotations=False)
    assert not dataset.has_annotations
    with caplog.at_level(logging.INFO):
        results, detections = run(dataset, [boxlist(rows) for rows in PERFECT], tmp_path)
    assert len(detections["bbox"]) == 3 and len(json.loads((tmp_path / "bbox.json").read_text())) == 3
    assert "no annotations" in caplog.text and "bbox.json" in caplog.text
    assert not (tmp_path / "coco_results.pth").exists()


def test_summary_goes_to_the_logger_and_not_to_stdout(tmp_path, caplog, capsys):
    dataset = write_dataset(tmp_path, TRUTH)
    with caplog.at_level(logging.INFO):
        run(dataset, [boxlist(rows) for rows in PERFECT])
    assert capsys.readouterr().out == ""
    assert "Average Precision  (AP) @[ IoU=0.50:0.95" in caplog.text
    assert "Score thresholds" in caplog.text and "Task: bbox" in caplog.text


def test_per_class_table(tmp_path, caplog):
    dataset = write_dataset(tmp_path, TRUTH)
    missed = [boxlist(PERFECT[0]), boxlist([]), boxlist([])]
    evaluated = coco_eval.evaluate_predictions_on_coco(
        dataset.coco, coco_eval.prepare_for_coco_detection(missed, dataset), None
    )
    rows = per_class_table(evaluated)
    assert [row[:3] for row in rows] == [("cat", 1, 1), ("dog", 2, 2), ("emu", 0, 0)]
    assert rows[0][3:] == pytest.approx((1.0, 1.0)) and rows[1][3:] == pytest.approx((51 / 101.0, 51 / 101.0))
    assert np.isnan(rows[2][3]) and np.isnan(rows[2][4])
    text = format_table(("class", "images", "boxes", "AP", "AP50"), rows).splitlines()
    assert text[1].split() == ["cat", "1", "1", "1.000", "1.000"] and text[3].split() == ["emu", "0", "0", "-", "-"]
    assert len({len(line) for line in text}) == 1


def test_thresholds_of_the_largest_f_measure(tmp_path):
    # cat: right at 0.9 and 0.6, wrong at 0.3. All three: P 2/3, R 1, F 0.8. The first two: P 1, R 1, F 1.
    dataset = write_dataset(tmp_path, [[(3, 10, 10, 40, 30), (3, 100, 20, 60, 50)]])
    rows = [(1, 10, 10, 40, 30, 0.9), (1, 100, 20, 60, 50, 0.6), (1, 60, 60, 20, 20, 0.3), (2, 0, 0, 9, 9, 0.5)]
    evaluated = coco_eval.evaluate_predictions_on_coco(
        dataset.coco, coco_eval.prepare_for_coco_detection([boxlist(rows)], dataset), None
    )
    thresholds = coco_eval.compute_thresholds_for_classes(evaluated)
    assert thresholds[0] == pytest.approx(0.6)
    assert np.isnan(thresholds[1]) and np.isnan(thresholds[2])


def test_expected_results(caplog):
    results = COCOResults("bbox")
    results.results["bbox"]["AP"] = 0.371
    with caplog.at_level(logging.INFO):
        assert check_expected_results(results, [["bbox", "AP", [0.37, 0.001]]], 4)
        assert not check_expected_results(results, [["bbox", "AP", [0.38, 0.001]]], 4)
        assert check_expected_results(results, [["bbox", "AP", [0.371, 0.0]]], 4)
    assert caplog.text.count("PASS: bbox > AP") == 2 and caplog.text.count("FAIL: bbox > AP") == 1
    with pytest.raises(KeyError, match="got bbox AP60"):
        check_expected_results(results, [["bbox", "AP60", [0.371, 0.0]]], 4)


def test_results_object():
    results = COCOResults("bbox", "box_proposal")
    assert results.results["bbox"]["AP"] == -1 and len(results.results["box_proposal"]) == 8
    assert "AR@1000" in repr(results)
    with pytest.raises(ValueError, match="got mask"):
        COCOResults("mask")


def test_average_recall_of_proposals(tmp_path):
    dataset = write_dataset(tmp_path, TRUTH)
    results, detections = run(dataset, [boxlist(rows) for rows in PERFECT], box_only=True)
    proposal = results.results["box_proposal"]
    assert detections == {} and proposal["AR@100"] == pytest.approx(1.0)
    # areas 1200, 3000 (medium) and 9900 (large)
    assert proposal["ARm@100"] == pytest.approx(1.0) and np.isnan(proposal["ARs@100"])
    # One proposal cannot cover two objects; the best-scored one is the cat's.
    stats = coco_eval.evaluate_box_proposals([boxlist(rows) for rows in PERFECT], dataset, limit=1)
    assert stats["num_pos"] == 3 and float(stats["ar"]) == pytest.approx(2 / 3.0)
    assert stats["gt_overlaps"].tolist() == pytest.approx([0, 1, 1])


def test_greedy_pairing_of_proposals(tmp_path):
    dataset = write_dataset(tmp_path, [[(3, 0, 0, 100, 50), (3, 50, 0, 100, 50)]])
    # Proposal a covers object 1 fully and object 2 by a third; b only overlaps object 2 by 80 %.
    stats = coco_eval.evaluate_box_proposals([boxlist([(1, 0, 0, 100, 50, 0.9), (1, 50, 0, 80, 50, 0.8)])], dataset)
    assert stats["gt_overlaps"].tolist() == pytest.approx([0.8, 1.0])
    with pytest.raises(ValueError, match="got 'tiny'"):
        coco_eval.evaluate_box_proposals([], dataset, area="tiny")


def test_missing_or_unknown_scorer_says_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="TEST.SCORER: expected one of faster_coco_eval, pycocotools, got 'coco'"):
        load_scorer("coco")
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match="pip install faster-coco-eval"):
        load_scorer("faster_coco_eval")


def test_the_faster_scorer_gives_the_same(tmp_path):
    pytest.importorskip("faster_coco_eval")
    dataset = write_dataset(tmp_path, TRUTH)
    predictions = [boxlist(PERFECT[0] + [(1, 60, 60, 20, 20, 0.95)]), boxlist([]), boxlist([])]
    slow, _ = run(dataset, predictions)
    fast, _ = run(dataset, predictions, scorer="faster_coco_eval")
    assert list(fast.results["bbox"].values()) == pytest.approx(list(slow.results["bbox"].values()), abs=1e-9)
    assert 0 < slow.results["bbox"]["AP"] < 1


def test_scoring_does_not_change_the_ground_truth(tmp_path):
    groundtruth = {
        "images": [{"id": 1}],
        "categories": CATEGORIES,
        "annotations": [
            {"image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9]},
            {"image_id": 1, "category_id": 55, "bbox": [0, 0, 9, 9]},
        ],
    }
    before = json.dumps(groundtruth)
    evaluated = score_boxes(groundtruth, [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 0.5}])
    assert json.dumps(groundtruth) == before and evaluated.stats[0] == pytest.approx(1.0)


def test_evaluate_dispatches_and_checks(tmp_path):
    dataset = write_dataset(tmp_path, TRUTH)
    predictions = [boxlist(rows) for rows in PERFECT]
    results, _ = evaluate(dataset, predictions, None)
    assert results.results["bbox"]["AP"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="got 2 for 3 images"):
        evaluate(dataset, predictions[:2], None)
    with pytest.raises(TypeError, match="expected dataset to be a COCODataset or a PascalVOCDataset, got list"):
        evaluate([0], predictions[:1], None)
    with pytest.raises(ValueError, match="this package detects boxes"):
        evaluate(dataset, predictions, None, iou_types=("bbox", "segm"))
