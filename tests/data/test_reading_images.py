"""Bad images, turned images, seeded transforms, joined data sets, lists."""
import logging
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image

from fcos_core.data.datasets import COCODataset, ConcatDataset, ListDataset
from fcos_core.data.datasets.detection import ImageReadError, read_image
from fcos_core.data.seeding import SeededIndex

from .samples import box, picture

IMAGES = [(1, 20, 10), (2, 22, 12), (3, 24, 14), (4, 26, 16)]


def spoil(root, image_id, how):
    path = os.path.join(root, "{:03d}.png".format(image_id))
    if how == "missing":
        os.remove(path)
    else:
        content = open(path, "rb").read()
        with open(path, "wb") as f:
            f.write({"truncated": content[:len(content) // 2], "empty": b"", "text": b"hello" * 50}[how])
    return path


@pytest.fixture
def dataset(make_coco):
    ann_file, root = make_coco(IMAGES, [box(k, [k, k, 5, 5]) for k, _, _ in IMAGES])
    return COCODataset(ann_file, root, False)


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "text"])
def test_a_bad_image_is_an_error_that_names_it(dataset, how):
    path = spoil(dataset.root, 2, how)
    with pytest.raises(ImageReadError, match="SKIP_BAD_IMAGES") as error:
        dataset[1]
    assert repr(path) in str(error.value)
    assert dataset[0][2] == 0


def test_replaced_by_the_next_good_one(dataset, caplog):
    spoil(dataset.root, 4, "truncated")
    spoil(dataset.root, 1, "missing")
    dataset.handle_bad_images("replace")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            image, target, index = dataset[3]  # the next ones are 0 (bad) and 1
            assert index == 1 and image.size == target.size == (22, 12) and target.bbox.tolist() == [[2, 2, 6, 6]]
    assert len(caplog.records) == 2 and dataset.num_bad_images == 2
    assert "004.png" in caplog.text and "001.png" in caplog.text


def test_all_bad_is_an_error(dataset):
    for k in range(1, 5):
        spoil(dataset.root, k, "missing")
    dataset.handle_bad_images("replace")
    with pytest.raises(ImageReadError, match="none of 4"):
        dataset[2]


def test_blank_keeps_the_place(dataset, caplog):
    spoil(dataset.root, 2, "text")
    dataset.handle_bad_images("blank")
    image, target, index = dataset[1]
    assert index == 1 and image.size == target.size == (22, 12) and not np.asarray(image).any()
    assert dataset.num_bad_images == 1 and "002.png" in caplog.text


def test_unknown_action(dataset):
    with pytest.raises(ValueError, match="ignore"):
        dataset.handle_bad_images("ignore")


def test_workers_report_bad_images_to_the_main_process(dataset):
    spoil(dataset.root, 2, "missing")
    dataset.handle_bad_images("replace")
    loader = torch.utils.data.DataLoader(
        dataset, num_workers=1, batch_size=4, collate_fn=lambda batch: [b[2] for b in batch])
    assert list(loader) == [[0, 2, 2, 3]] and dataset.num_bad_images == 1


def test_error_in_a_worker_names_the_file(dataset):
    path = spoil(dataset.root, 3, "missing")
    loader = torch.utils.data.DataLoader(dataset, num_workers=1, batch_size=2, collate_fn=list)
    with pytest.raises(ImageReadError) as error:
        list(loader)
    assert repr(path) in str(error.value)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = str(tmp_path / "a.tif") if mode == "CMYK" else str(tmp_path / "a.png")
    picture(8, 6).convert(mode).save(path)
    assert read_image(path).mode == "RGB" and read_image(path).size == (8, 6)


def save_turned(path, width, height):
    """A picture of width x height, stored on its side with a camera's orientation tag."""
    image = Image.new("RGB", (height, width))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif.tobytes())


def test_annotations_of_a_turned_photo(make_coco, caplog):
    ann_file, root = make_coco([(1, 20, 10, "a.jpg")], [box(1, [12, 2, 5, 5])])
    save_turned(os.path.join(root, "a.jpg"), 20, 10)
    image, target, _ = COCODataset(ann_file, root, False)[0]
    assert image.size == target.size == (20, 10) and target.bbox.tolist() == [[12, 2, 16, 6]]
    assert not caplog.records


def test_stored_pixels_count_when_the_annotations_say_so(make_coco):
    ann_file, root = make_coco([(1, 10, 20, "a.jpg")], [box(1, [2, 12, 5, 5])])
    save_turned(os.path.join(root, "a.jpg"), 20, 10)
    image, target, _ = COCODataset(ann_file, root, False)[0]
    assert image.size == target.size == (10, 20) and len(target) == 1


def test_wrong_size_in_the_annotations(make_coco, caplog):
    ann_file, root = make_coco(IMAGES, [box(1, [5, 5, 14, 4]), box(1, [16, 5, 4, 4])])
    for k in (1, 2):
        picture(15, 10).save(os.path.join(root, "{:03d}.png".format(k)))
    dataset = COCODataset(ann_file, root, False)
    image, target, _ = dataset[0]
    assert image.size == target.size == (15, 10)
    assert target.bbox.tolist() == [[5, 5, 14, 8]] and target.get_field("labels").tolist() == [1]
    dataset[1]
    assert len(caplog.records) == 1 and "001.png is 15 x 10 pixels, the annotations say 20 x 10" in caplog.text
    assert len(dataset.get_target(0)) == 2


class Draw(object):
    """A transform that shows the random numbers it gets."""

    def __call__(self, image, target):
        return (random.random(), float(np.random.rand()), float(torch.rand(1))), target  # noqa: NPY002


def test_seeded_indices_fix_the_transforms(dataset):
    dataset._transforms = Draw()
    first, other = dataset[SeededIndex(1, 5)], dataset[SeededIndex(1, 6)]
    dataset[0]
    assert dataset[SeededIndex(1, 5)][0] == first[0] != other[0]
    assert type(first[2]) is int
    assert dataset[1][0] != dataset[1][0]


def test_indices_out_of_range(dataset):
    assert dataset[-1][2] == 3
    for index in (4, -5):
        with pytest.raises(IndexError):
            dataset[index]
    assert len(list(dataset)) == 4


def test_joined_data_sets(make_coco):
    parts = [COCODataset(*make_coco(IMAGES, [box(k, [k, k, 5, 5]) for k in (1, 2)], name="a"), False, Draw()),
             COCODataset(*make_coco([(9, 30, 20)], name="b"), False, Draw())]
    joined = ConcatDataset(parts)
    assert len(joined) == 5 and joined.get_idxs(3) == (0, 3) and joined.get_idxs(4) == (1, 0)
    assert joined.get_img_info(4)["width"] == 30 and joined.image_name(4) == "009.png"
    assert joined.categories == ["cat", "dog"] and joined.has_annotations
    assert joined[4][2] == joined[-1][2] == 4 and joined[3][2] == 3
    assert joined[SeededIndex(4, 9)][0] == joined[SeededIndex(4, 9)][0] != joined[SeededIndex(4, 8)][0]
    with pytest.raises(IndexError):
        joined[5]
    spoil(parts[0].root, 4, "missing")
    parts[0].handle_bad_images("replace")
    assert joined[3][2] == 0 and joined.num_bad_images == 1


def test_list_of_files(tmp_path):
    paths = [str(tmp_path / name) for name in ("b.png", "a.png")]
    picture(12, 8).save(paths[0])
    picture(9, 7).save(paths[1])
    dataset = ListDataset(paths)
    assert len(dataset) == 2 and not dataset.has_annotations and dataset.image_name(0) == paths[0]
    image, target, index = dataset[1]
    assert image.size == target.size == (9, 7) and len(target) == 0 and index == 1
    assert dataset.get_img_info(0)["width"] == 12
