import json
import logging
import pickle

import numpy as np
import pytest
import torch

from fcos_core.data.datasets import COCODataset
from fcos_core.data.datasets.coco import has_valid_annotation, read_category_names, read_coco_json

from .samples import box

IMAGES = [(7, 40, 30), (3, 30, 40), (5, 50, 20)]


def test_order_labels_and_items(make_coco):
    ann_file, root = make_coco(
        IMAGES, [box(5, [10, 5, 20, 10], 9), box(5, [0, 0, 5.5, 4], 4), box(7, [1, 2, 3, 4], 4)],
        categories=[(9, "dog"), (4, "cat"), (11, "eel")])
    dataset = COCODataset(ann_file, root, False)
    assert len(dataset) == 3 and dataset.ids == [3, 5, 7] and dataset.id_to_img_map == {0: 3, 1: 5, 2: 7}
    assert dataset.categories == ["cat", "dog", "eel"] and dataset.has_annotations
    assert dataset.json_category_id_to_contiguous_id == {4: 1, 9: 2, 11: 3}
    assert dataset.contiguous_category_id_to_json_id == {1: 4, 2: 9, 3: 11}
    image, target, index = dataset[1]
    assert image.mode == "RGB" and image.size == target.size == (50, 20) and index == 1
    # xywh with inclusive corners: x2 = x1 + w - 1
    assert target.mode == "xyxy" and target.bbox.tolist() == [[10, 5, 29, 14], [0, 0, 4.5, 3]]
    assert target.get_field("labels").tolist() == [2, 1] and target.get_field("labels").dtype == torch.int64
    assert dataset.get_img_info(1) == {"id": 5, "file_name": "005.png", "width": 50, "height": 20}
    assert dataset.image_name(1) == "005.png"


def test_images_without_boxes_have_empty_targets(make_coco):
    ann_file, root = make_coco(IMAGES, [box(7, [1, 2, 30, 20], iscrowd=1), box(5, [1, 2, 9, 9])])
    dataset = COCODataset(ann_file, root, False)
    for index in (0, 2):  # no annotation; a crowd only
        _, target, _ = dataset[index]
        assert len(target) == 0 and target.bbox.shape == (0, 4)
        assert target.get_field("labels").shape == (0,) and target.get_field("labels").dtype == torch.int64


def test_filter_of_the_ancestors(make_coco):
    images = [(k, 40, 30) for k in range(1, 6)]
    ann_file, root = make_coco(images, [
        box(1, [1, 2, 30, 20], iscrowd=1),       # a crowd counts as annotation
        box(2, [1, 2, 1, 20]),                   # only an empty box
        box(3, [1, 2, 1, 20]), box(3, [1, 2, 8, 8]),
        box(5, [0, 0, 4, 4])])
    assert COCODataset(ann_file, root, True).ids == [1, 3, 5]
    assert COCODataset(ann_file, root, False).ids == [1, 2, 3, 4, 5]
    # Legacy: a sum over coordinates in place of this test once took a box centred on x = 0 for none.
    assert has_valid_annotation([{"bbox": [-4, 0, 8, 8]}])


@pytest.mark.parametrize("visible, valid", [(9, False), (10, True)])
def test_filter_counts_visible_keypoints(visible, valid):
    flags = [2] * visible + [0] * (17 - visible)
    points = [number for flag in flags for number in (1, 1, flag)]
    assert has_valid_annotation([{"bbox": [0, 0, 9, 9], "keypoints": points}]) is valid


def test_bad_boxes_are_counted_in_one_warning(make_coco, caplog):
    ann_file, root = make_coco(IMAGES, [
        box(3, [5, 5, 10, 10]),
        box(3, [5, 5, 10, 1]), box(5, [5, 5, -3, 8]), box(5, [5, 5, 0.4, 8]),    # zero extent
        box(5, [60, 5, 10, 10]), box(7, [-20, 5, 15, 10]),                        # outside
        box(7, [5, 5, float("nan"), 10]),
        box(7, [5, 5, 9, 9], 99), {"image_id": 7, "category_id": 1},
        box(7, [30, 20, 40, 40]),                                                 # clipped
        box(7, [30, 20, 11, 11])])                                                # one pixel over: rounding
    with caplog.at_level(logging.WARNING):
        dataset = COCODataset(ann_file, root, False)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "dropped 8 of 11 boxes" in message and "3 with zero extent" in message and "2 outside its image" in message
    assert "1 with a coordinate that is not a number" in message and "1 of an unknown category" in message
    assert "1 without four numbers" in message and "clipped 1 of 11" in message
    assert "first: 003.png" in message or "first: 007.png" in message
    assert sum(dataset.box_report.dropped.values()) == 8
    assert [len(dataset.get_target(k)) for k in range(3)] == [1, 0, 2]
    assert dataset.get_target(2).bbox.tolist() == [[30, 20, 39, 29], [30, 20, 39, 29]]


def test_good_boxes_give_no_warning(make_coco, caplog):
    ann_file, root = make_coco(IMAGES, [box(3, [0, 0, 30, 40]), box(5, [0, 0, 50.5, 20.5])])
    with caplog.at_level(logging.WARNING):
        COCODataset(ann_file, root, False)
    assert not caplog.records


def test_transforms_cannot_change_the_stored_boxes(make_coco):
    ann_file, root = make_coco(IMAGES, [box(3, [5, 5, 10, 10])])

    def spoil(image, target):
        target.bbox.zero_()
        target.get_field("labels").zero_()
        return image, target

    dataset = COCODataset(ann_file, root, False, spoil)
    dataset[0]
    assert dataset.get_target(0).bbox.tolist() == [[5, 5, 14, 14]]
    assert dataset.get_target(0).get_field("labels").tolist() == [1]


def test_without_annotations(make_coco):
    for name, keep in (("a", ("images", "categories")), ("b", ("images",)), ("c", None)):
        ann_file, root = make_coco(IMAGES, (), name=name, keep=keep)
        dataset = COCODataset(ann_file, root, False)
        assert not dataset.has_annotations and len(dataset) == 3
        assert dataset.categories == ([] if name == "b" else ["cat", "dog"])
        assert len(dataset[0][1]) == 0


def test_sizes_missing_from_the_file_are_read_from_the_images(make_coco):
    ann_file, root = make_coco(IMAGES, [box(3, [5, 5, 10, 10])])
    data = json.loads(open(ann_file).read())
    for image in data["images"]:
        del image["width"]
    open(ann_file, "w").write(json.dumps(data))
    assert COCODataset(ann_file, root, False).get_img_info(1)["width"] == 50


def test_scorer_view_fills_in_what_own_files_lack(make_coco):
    pytest.importorskip("pycocotools")
    ann_file, root = make_coco(IMAGES, [box(3, [5, 5, 10, 6])])
    dataset = COCODataset(ann_file, root, False)
    annotation = dataset.coco.loadAnns(dataset.coco.getAnnIds([3]))[0]
    assert annotation["area"] == 60 and annotation["iscrowd"] == 0
    assert dataset.coco is dataset.coco and "info" in dataset.coco.dataset
    assert pickle.loads(pickle.dumps(dataset))._coco is None


def test_many_random_boxes_against_the_rules_one_by_one(make_coco):
    rng = np.random.RandomState(0)  # noqa: NPY002
    boxes = rng.uniform(-20, 60, (300, 4)).round(2)
    boxes[:, 2:] = rng.uniform(-2, 40, (300, 2)).round(2)
    owners = rng.choice([3, 5, 7], 300)
    ann_file, root = make_coco(IMAGES, [box(int(i), b.tolist(), 1 + k % 2) for k, (i, b) in
                                        enumerate(zip(owners, boxes))])
    dataset = COCODataset(ann_file, root, False)
    sizes = {image[0]: image[1:3] for image in IMAGES}
    for index, image_id in enumerate(dataset.ids):
        want = []
        for k in np.nonzero(owners == image_id)[0]:
            x, y, w, h = boxes[k].astype(np.float32)
            x1, y1, x2, y2 = x, y, x + max(w - np.float32(1), np.float32(0)), y + max(h - np.float32(1), np.float32(0))
            width, height = sizes[image_id]
            x1, x2 = (min(max(v, 0), width - 1) for v in (x1, x2))
            y1, y2 = (min(max(v, 0), height - 1) for v in (y1, y2))
            if x2 > x1 and y2 > y1:
                want.append((x1, y1, x2, y2, 1 + k % 2))
        target = dataset.get_target(index)
        assert len(want) > 20
        np.testing.assert_array_equal(target.bbox.numpy(), np.array(want, np.float32)[:, :4])
        assert target.get_field("labels").tolist() == [row[4] for row in want]


@pytest.mark.parametrize("content, what", [
    ("{\"images\": [", "is the file complete"),
    ("[]", "\"images\""),
    ("{\"annotations\": []}", "\"images\""),
    ("{\"images\": [], \"annotations\": [{\"image_id\": 1}]}", "\"categories\""),
])
def test_broken_files_are_named(tmp_path, content, what):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=what) as error:
        read_coco_json(str(path))
    assert "broken.json" in str(error.value)


def test_missing_files_are_named(make_coco, tmp_path):
    ann_file, root = make_coco(IMAGES)
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        COCODataset(str(tmp_path / "nowhere.json"), root, False)
    with pytest.raises(FileNotFoundError, match="nofolder"):
        COCODataset(ann_file, str(tmp_path / "nofolder"), False)


def test_repeated_ids_and_nameless_images(make_coco):
    ann_file, root = make_coco([(1, 20, 20), (1, 20, 20)])
    with pytest.raises(ValueError, match="distinct image ids"):
        COCODataset(ann_file, root, False)
    ann_file, root = make_coco([(1, 20, 20)], name="b")
    open(ann_file, "w").write(json.dumps({"images": [{"id": 1, "width": 2, "height": 2}]}))
    with pytest.raises(ValueError, match="file_name"):
        COCODataset(ann_file, root, False)


@pytest.mark.parametrize("trap", [None, {"info": {"categories": "none"}}, {"info": {"note": "the \"categories\" are"}}])
def test_categories_of_large_files_are_found_without_parsing_all(make_coco, monkeypatch, trap):
    monkeypatch.setattr("fcos_core.data.datasets.coco._LARGE_FILE", 1)
    ann_file, _ = make_coco(IMAGES, [box(3, [5, 5, 10, 6])], categories=[(2, "b\u00e9"), (1, "\u732b")])
    if trap:
        data = json.loads(open(ann_file, encoding="utf-8").read())
        open(ann_file, "w", encoding="utf-8").write(json.dumps(dict(trap, **data), ensure_ascii=False))
    else:
        monkeypatch.setattr("fcos_core.data.datasets.coco.read_coco_json", None)  # must not be needed
    assert read_category_names(ann_file) == ["\u732b", "b\u00e9"]


def test_masks_and_keypoints_on_request(make_coco):
    outline = [[1, 2, 21, 2, 21, 12, 1, 12]]
    points = [number for k in range(17) for number in (k, 2 * k, 2)]
    ann_file, root = make_coco(IMAGES, [
        box(7, [1, 2, 0, 5], segmentation=outline),  # empty, dropped
        box(7, [1, 2, 20, 10], 2, segmentation=outline, keypoints=points),
        box(7, [1, 2, 9, 9], segmentation={"counts": "abc", "size": [30, 40]})])
    _, target, _ = COCODataset(ann_file, root, False)[2]
    assert target.fields() == ["labels"]

    dataset = pickle.loads(pickle.dumps(COCODataset(ann_file, root, False, fields=("masks", "keypoints"))))
    _, target, _ = dataset[2]
    assert sorted(target.fields()) == ["keypoints", "labels", "masks"] and target.get_field("labels").tolist() == [2, 1]
    masks = target.get_field("masks")
    assert masks.size == target.size == (40, 30) and len(masks[1]) == 1
    assert masks.instances.polygons[0].polygons[0].tolist() == outline[0]
    assert [len(outline) for outline in masks.instances] == [1, 0]
    assert target.get_field("keypoints").keypoints[:, 3].tolist() == [[3, 6, 2], [0, 0, 0]]
    assert len(dataset[0][1].get_field("masks")) == len(dataset[0][1].get_field("keypoints")) == 0
    with pytest.raises(ValueError, match="expected fields among masks, keypoints, got .'depth'."):
        COCODataset(ann_file, root, False, fields=("depth",))
