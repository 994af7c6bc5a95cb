"""Drawing: what must be visible, what must not be touched, and what leaves the picture."""

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")

from fcos_core import visualize  # noqa: E402
from fcos_core.visualize import draw_detections, label_colour, label_text  # noqa: E402


def grey(height=240, width=320):
    return np.full((height, width, 3), 127, np.uint8)


def test_returns_a_new_picture_with_the_box_in_the_colour_of_its_class():
    image = grey()
    before = image.copy()
    drawn = draw_detections(image, [[50, 60, 200, 180]], [2], [0.9], ["cat", "dog"])
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert np.array_equal(image, before)
    assert tuple(drawn[120, 50]) == label_colour(2)  # left side
    assert tuple(drawn[180, 120]) == label_colour(2)  # bottom side
    assert tuple(drawn[120, 120]) == (127, 127, 127)  # the inside stays visible


def test_nothing_to_draw_gives_the_same_picture():
    image = grey()
    assert np.array_equal(draw_detections(image, np.zeros((0, 4)), [], []), image)
    assert np.array_equal(draw_detections(image, [[np.nan, 0, 10, 10]], [1], [0.5]), image)


def test_takes_tensors_lists_and_missing_scores():
    boxes = [[50, 60, 200, 180], [10, 20, 30, 40]]
    by_list = draw_detections(grey(), boxes, [1, 2], [0.5, 0.25], ["a", "b"])
    by_tensor = draw_detections(
        grey(), torch.tensor(boxes), torch.tensor([1, 2]), torch.tensor([0.5, 0.25]), ["a", "b"]
    )
    assert np.array_equal(by_list, by_tensor)
    assert not np.array_equal(by_list, draw_detections(grey(), boxes, [1, 2], None, ["a", "b"]))


@pytest.mark.parametrize(
    "box", [[0, 0, 319, 239], [300, 0, 319, 10], [0, 230, 10, 239], [290, 225, 319, 239], [-50, -50, 900, 900]]
)
@pytest.mark.parametrize("name", ["cat", "an exceedingly long class name that no picture of this width can hold"])
def test_labels_stay_inside_the_picture(box, name, monkeypatch):
    places = []
    write = visualize._write
    monkeypatch.setattr(
        visualize, "_write", lambda cv2, canvas, place, *rest: (places.append(place), write(cv2, canvas, place, *rest))
    )
    draw_detections(grey(), [box], [1], [0.99], [name])
    (place,) = places
    assert 0 <= place.left and place.right <= 320 and 0 <= place.top and place.bottom <= 240


def test_labels_of_overlapping_boxes_do_not_cover_each_other(monkeypatch):
    places = []
    monkeypatch.setattr(visualize, "_write", lambda cv2, canvas, place, *rest: places.append(place))
    boxes = [[60, 80, 200, 180], [62, 82, 202, 182], [64, 80, 204, 184]]
    draw_detections(grey(), boxes, [1, 2, 3], [0.9, 0.8, 0.7], ["one", "two", "three"])
    assert len(places) == 3
    for i in range(3):
        for j in range(i):
            assert not places[i].overlaps(places[j])


def test_the_better_score_is_drawn_on_top():
    boxes = [[50, 60, 200, 180], [50, 60, 200, 180]]
    assert tuple(draw_detections(grey(), boxes, [1, 2], [0.9, 0.3])[120, 50]) == label_colour(1)
    assert tuple(draw_detections(grey(), boxes, [1, 2], [0.3, 0.9])[120, 50]) == label_colour(2)


def test_lines_and_letters_grow_with_the_picture():
    small = draw_detections(np.zeros((120, 160, 3), np.uint8), [[30, 40, 120, 100]], [1])
    large = draw_detections(np.zeros((1200, 1600, 3), np.uint8), [[300, 400, 1200, 1000]], [1])
    assert large[700, 280:320].any(axis=1).sum() > small[70, 26:36].any(axis=1).sum()


def test_colours_are_stable_and_distinct():
    colours = [np.array(label_colour(k), np.float64) for k in range(1, 81)]
    assert label_colour(7) == label_colour(7)
    assert len({tuple(c) for c in colours}) == 80
    first = colours[:20]
    assert min(np.abs(first[i] - first[j]).max() for i in range(20) for j in range(i)) >= 25


def test_texts():
    assert label_text(2, 0.876, ["cat", "dog"]) == "dog 0.88"
    assert label_text(3, 0.5, ["cat", "dog"]) == "class 3 0.50"
    assert label_text(1, None, None) == "class 1"
    assert label_text(1, None, ["caf\u00e9"]) == "cafe"
    assert label_text(1, None, ["\u732b"]) == "class 1"


def test_wrong_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"expected image uint8 \[H,W,3\], got float64 \[4, 4\]"):
        draw_detections(np.zeros((4, 4)), [], [])
    with pytest.raises(ValueError, match="got 1 boxes, 2 labels, no scores"):
        draw_detections(grey(), [[0, 0, 1, 1]], [1, 2])
