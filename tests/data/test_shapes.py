import hashlib
import json
import multiprocessing
import os

import numpy as np
import pytest
from PIL import Image

from fcos_core.data.datasets import shapes, shapes_render
from fcos_core.data.datasets.shapes import ShapesDataset, make_shapes

# SHA-256 of the first 12 pictures and annotations of the training split.  It changes with the pictures, on purpose
# only; then VERSION in shapes.py must change as well.
DIGEST = "bc7a31e0ee99cf141ac35071ebc41fed8336217410227a567fb52ee6635a4f07"


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(shapes, "SPLITS", {"train": (12, 100000), "val": (5, 200000)})


def test_pictures_are_the_same_everywhere():
    digest = hashlib.sha256()
    for k in range(12):
        pixels, objects = shapes_render.render(100000 + k)
        digest.update(pixels.tobytes())
        digest.update(json.dumps([[o["label"], o["bbox"], o["area"]] for o in objects]).encode())
    assert shapes.VERSION == 1 and digest.hexdigest() == DIGEST


def test_it_is_a_detection_problem():
    rendered = [shapes_render.render(100000 + k) for k in range(60)]
    labels = [o["label"] for _, objects in rendered for o in objects]
    sides = np.array([max(o["bbox"][2:]) for _, objects in rendered for o in objects])
    counts = [len(objects) for _, objects in rendered]
    assert min(np.bincount(labels, minlength=6)[1:]) > len(labels) / 10  # every class is there
    assert sides.min() < 14 and sides.max() > 120 and 0.2 < (sides > 64).mean() < 0.6
    assert min(counts) == 0 and max(counts) == 8
    assert {pixels.shape[0] > pixels.shape[1] for pixels, _ in rendered} == {True, False}
    truncated = sum(o["bbox"][0] == 0 or o["bbox"][1] == 0 for _, objects in rendered for o in objects)
    assert truncated > 10
    for pixels, objects in rendered:
        height, width = pixels.shape[:2]
        assert pixels.dtype == np.uint8 and pixels.std() > 5
        for o in objects:
            x, y, w, h = o["bbox"]
            assert 0 <= x and 0 <= y and x + w <= width and y + h <= height
            assert min(w, h) >= shapes_render.MIN_SIDE and 0.05 * w * h < o["area"] <= w * h
            assert 1 <= o["label"] <= 5


@pytest.mark.parametrize("name", shapes_render.CLASSES)
def test_every_shape_is_drawn_inside_its_circle(name):
    y, x = np.mgrid[-60.0:61, -60.0:61]
    mask = shapes_render._signed_distance(name, x, y, 80.0, 1.0, 0.3) <= 0
    ys, xs = np.nonzero(mask)
    assert 70 <= max(np.ptp(xs), np.ptp(ys)) + 1 <= 98
    assert mask[60, 60] and 1200 < mask.sum() < 5100
    # around its centre: no shape is off by more than the triangle, whose box is not centred
    assert abs(xs.mean() - 60) < 1 and abs(ys.mean() - 60) < 1


def test_boxes_hold_all_that_is_painted():
    drawn = 0
    for seed in range(8):
        canvas = np.full((3, 200, 200), 100.0)
        objects = shapes_render._draw_objects(np.random.RandomState(seed), canvas)  # noqa: NPY002
        drawn += len(objects)
        # The soft edge of a star's tip reaches at most three pixels out of its box.
        covered = np.zeros((200, 200), bool)
        for x, y, w, h in (o["bbox"] for o in objects):
            covered[max(y - 3, 0):y + h + 3, max(x - 3, 0):x + w + 3] = True
        assert not ((canvas != 100.0).any(0) & ~covered).any()
    assert drawn > 20


def test_a_box_is_tight_around_the_visible_part():
    mask = np.zeros((20, 30), bool)
    mask[4:9, 3] = mask[8, 3:12] = True
    assert shapes_render._annotation(mask, 2) == {"label": 3, "bbox": [3, 4, 9, 5], "area": 13}


def test_files(few, tmp_path):
    dataset = ShapesDataset(str(tmp_path), "train")
    assert len(dataset) == 12 and dataset.categories == list(shapes_render.CLASSES) and dataset.has_annotations
    assert not dataset.box_report.message()
    for index in range(12):
        pixels, objects = shapes_render.render(100000 + index)
        image, target, _ = dataset[index]
        assert np.array_equal(np.asarray(image), pixels)
        want = [[x, y, x + w - 1, y + h - 1] for x, y, w, h in (o["bbox"] for o in objects)]
        assert target.bbox.tolist() == want
        assert target.get_field("labels").tolist() == [o["label"] for o in objects]
    with open(dataset.ann_file) as f:
        data = json.load(f)
    assert {a["iscrowd"] for a in data["annotations"]} == {0} and len({a["id"] for a in data["annotations"]}) == len(
        data["annotations"])


def test_made_once(few, tmp_path, monkeypatch):
    folder = make_shapes(str(tmp_path), "val")
    monkeypatch.setattr(shapes, "render", None)
    assert make_shapes(str(tmp_path), "val") == folder
    assert sorted(os.listdir(str(tmp_path))) == ["val_v1", "val_v1.lock"]


def test_what_a_killed_maker_left_is_removed(few, tmp_path):
    left_over = tmp_path / "val_v1.123.tmp" / "images"
    left_over.mkdir(parents=True)
    (left_over / "000001.png").write_bytes(b"half")
    make_shapes(str(tmp_path), "val")
    assert sorted(os.listdir(str(tmp_path))) == ["val_v1", "val_v1.lock"]


def test_an_error_leaves_nothing_half_made(few, tmp_path, monkeypatch):
    calls = []

    def fail(seed):
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return shapes_render.render(seed)

    monkeypatch.setattr(shapes, "render", fail)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(str(tmp_path), "val")
    assert os.listdir(str(tmp_path)) == ["val_v1.lock"]
    monkeypatch.setattr(shapes, "render", shapes_render.render)
    assert len(ShapesDataset(str(tmp_path), "val")) == 5


def _make(arguments):
    root, barrier_file, splits = arguments
    shapes.SPLITS = splits
    made = []
    real = shapes.render
    shapes.render = lambda seed: made.append(seed) or real(seed)
    while not os.path.exists(barrier_file):
        pass
    make_shapes(root, "train")
    return len(made)


def test_many_processes_at_once(few, tmp_path):
    # Whoever waits must not draw: exactly one process made all pictures.
    start = tmp_path / "start"
    # Forked where that is possible: importing torch four times takes long.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with multiprocessing.get_context(method).Pool(4) as pool:
        pending = pool.map_async(_make, [(str(tmp_path / "data"), str(start), shapes.SPLITS)] * 4, chunksize=1)
        start.write_text("")
        counts = pending.get(timeout=120)
    assert sorted(counts) == [0, 0, 0, 12]
    image = Image.open(str(tmp_path / "data" / "train_v1" / "images" / "000001.png"))
    assert np.array_equal(np.asarray(image), shapes_render.render(100000)[0])


def test_a_folder_that_cannot_be_written(few, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="FCOS_CORE_DATA"):
        make_shapes(str(tmp_path / "file" / "shapes"), "val")


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="'test'"):
        make_shapes(str(tmp_path), "test")
