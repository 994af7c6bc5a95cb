import logging
import os

import pytest
import torch

from fcos_core.data.datasets import PascalVOCDataset
from fcos_core.data.datasets.voc import infer_voc_classes

TWO = {"one": (40, 30, [("Dog", 1, 1, 40, 30), ("cat", 11, 6, 20, 15, 1)]), "two": (30, 40, [])}


def test_items(make_voc):
    dataset = PascalVOCDataset(make_voc(TWO, {"train": ["two", "one"]}), "train")
    assert dataset.ids == ["two", "one"] and len(dataset) == 2 and dataset.has_annotations
    assert dataset.categories[0] == "aeroplane" and len(dataset.categories) == 20 and len(dataset.CLASSES) == 21
    image, target, index = dataset[1]
    # VOC counts from 1; the difficult cat is not trained on
    assert index == 1 and image.size == target.size == (40, 30) and target.bbox.tolist() == [[0, 0, 39, 29]]
    assert target.get_field("labels").tolist() == [12] and target.get_field("labels").dtype == torch.int64
    assert target.get_field("difficult").tolist() == [False]
    assert dataset.map_class_id_to_class_name(12) == "dog"
    assert dataset.get_img_info(0) == {"height": 40, "width": 30} and dataset.image_name(0) == "two.jpg"
    _, empty, _ = dataset[0]
    assert len(empty) == 0 and empty.get_field("labels").dtype == torch.int64


def test_difficult_objects_are_kept_on_request(make_voc):
    target = PascalVOCDataset(make_voc(TWO), "train", use_difficult=True).get_groundtruth(0)
    assert target.bbox.tolist() == [[0, 0, 39, 29], [10, 5, 19, 14]]
    assert target.get_field("labels").tolist() == [12, 8] and target.get_field("difficult").tolist() == [False, True]


def test_own_classes_are_found_in_the_files(make_voc):
    root = make_voc({"a": (40, 30, [("Zebra", 1, 1, 9, 9), (" ant ", 1, 1, 9, 9)]),
                     "b": (40, 30, [("zebra", 2, 2, 9, 9)]),
                     "c": (40, 30, [("Mouse", 2, 2, 9, 9)])}, {"train": ["a", "b"], "test": ["c"]})
    # all files count, also those of other splits, so that train and test agree
    assert infer_voc_classes(root) == ["ant", "Mouse", "Zebra"]
    dataset = PascalVOCDataset(root, "train", classes="infer")
    assert dataset.categories == ["ant", "Mouse", "Zebra"]
    assert [dataset.get_groundtruth(k).get_field("labels").tolist() for k in (0, 1)] == [[3, 1], [3]]
    assert PascalVOCDataset.CLASSES[1] == "aeroplane"  # the class itself is as it was


def test_classes_txt_wins(make_voc):
    root = make_voc(TWO)
    with open(os.path.join(root, "classes.txt"), "w") as f:
        f.write("cat\nbird\n\nDog\n")
    dataset = PascalVOCDataset(root, "train", classes="infer")
    assert dataset.categories == ["cat", "bird", "Dog"]
    assert dataset.get_groundtruth(0).get_field("labels").tolist() == [3]


def test_inferred_classes_follow_a_changed_file(make_voc):
    root = make_voc(TWO)
    assert infer_voc_classes(root) == ["cat", "Dog"]
    path = os.path.join(root, "Annotations", "one.xml")
    text = open(path).read().replace("cat", "cow")
    open(path, "w").write(text)
    os.utime(path, (1, 1))
    assert infer_voc_classes(root) == ["cow", "Dog"]


def test_unknown_class_is_named(make_voc):
    root = make_voc({"a": (40, 30, [("unicorn", 1, 1, 9, 9)])})
    with pytest.raises(ValueError, match="'unicorn'.*a.xml"):
        PascalVOCDataset(root, "train")


def test_bad_boxes_are_counted_in_one_warning(make_voc, caplog):
    root = make_voc({"a": (40, 30, [("cat", 5, 5, 5, 9), ("cat", 5, 5, 9, 9)]),
                     "b": (40, 30, [("cat", 50, 5, 60, 9), ("cat", 1, 1, 50, 30), ("cat", 20, 20, 9, 9)])})
    with caplog.at_level(logging.WARNING):
        dataset = PascalVOCDataset(root, "train")
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "dropped 3 of 5 boxes: 1 outside its image, 2 with zero extent; first: a.xml" in message
    assert "clipped 1 of 5 boxes" in message and "first: b.xml" in message
    assert dataset.get_groundtruth(1).bbox.tolist() == [[0, 0, 39, 29]]


def test_sizes_come_from_the_picture_when_the_file_has_none(make_voc):
    dataset = PascalVOCDataset(make_voc(TWO, with_size=False), "train")
    assert dataset.get_img_info(0) == {"width": 40, "height": 30} and len(dataset[0][1]) == 1


def test_other_image_formats(make_voc):
    dataset = PascalVOCDataset(make_voc(TWO, ending=".PNG"), "train")
    assert dataset.image_name(0) == "one.PNG" and dataset[0][0].size == (40, 30)


def test_without_annotations(make_voc):
    dataset = PascalVOCDataset(make_voc(TWO, with_xml=False), "train")
    assert not dataset.has_annotations
    image, target, _ = dataset[1]
    assert image.size == (30, 40) and len(target) == 0


def test_one_missing_annotation_is_an_error(make_voc):
    root = make_voc(TWO)
    os.remove(os.path.join(root, "Annotations", "two.xml"))
    with pytest.raises(FileNotFoundError, match="two.xml"):
        PascalVOCDataset(root, "train")


def test_missing_split_names_the_ones_that_exist(make_voc):
    root = make_voc(TWO, {"trainval": ["one"], "test": ["two"]})
    with pytest.raises(FileNotFoundError, match="test, trainval"):
        PascalVOCDataset(root, "train")
    with pytest.raises(FileNotFoundError, match="ImageSets/Main"):
        PascalVOCDataset(os.path.join(root, "nowhere"), "train")


@pytest.mark.parametrize("content", ["<annotation><object>", "<annotation><object><name>a</name></object></annotation>",
                                     "<annotation><size><width>x</width></size></annotation>"])
def test_broken_xml_is_named(make_voc, content):
    root = make_voc(TWO)
    with open(os.path.join(root, "Annotations", "two.xml"), "w") as f:
        f.write(content)
    with pytest.raises(ValueError, match="two.xml"):
        PascalVOCDataset(root, "train")
