import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from fcos_core.config import cfg as defaults
from fcos_core.data.transforms import (
    Compose,
    Normalize,
    RandomHorizontalFlip,
    Resize,
    ToTensor,
    build_transforms,
)
from fcos_core.structures.bounding_box import BoxList

from .golden import GOLDEN

BGR = Normalize([102.9801, 115.9465, 122.7717], [1.0, 1.0, 1.0], to_bgr255=True)
RGB = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], to_bgr255=False)


def sample():
    """The recorded picture (12 x 18 blocks of 10 x 10 pixels) and its box."""
    pixels = GOLDEN["transform/base_uint8_12x18"].repeat(10, 0).repeat(10, 1)
    target = BoxList([[10, 20, 100, 80]], (180, 120))
    target.add_field("labels", torch.tensor([3]))
    return Image.fromarray(pixels), target


@pytest.mark.parametrize("row", GOLDEN.meta["resize"])
def test_sizes_equal_the_recorded_ones(row):
    width, height, min_size, max_size, out_h, out_w = row
    assert Resize(min_size, max_size).get_size((width, height)) == (out_h, out_w)


@pytest.mark.parametrize("key, normalize", [("bgr255", BGR), ("rgb", RGB)])
def test_pipeline_equals_the_recorded_pixels(key, normalize):
    image, target = Compose([Resize(80, 100), RandomHorizontalFlip(0), ToTensor(), normalize])(*sample())
    assert list(image.shape) == GOLDEN["transform/%s_shape" % key].tolist()
    # Pillow rounds to whole grey values; a version that rounds one of them differently is still right.
    tolerance = 1.001 if key == "bgr255" else 0.0175
    assert np.abs(image.numpy().ravel()[::37] - GOLDEN["transform/%s_every37" % key]).max() <= tolerance
    np.testing.assert_allclose(target.bbox.numpy(), GOLDEN["transform/%s_box" % key], rtol=1e-6)
    assert target.size == (100, 67) and target.get_field("labels").tolist() == [3]


def test_normalize_is_the_formula_and_keeps_its_input():
    image = torch.rand(3, 4, 5)
    before = image.clone()
    mean, std = [1.0, 2.0, 3.0], [2.0, 4.0, 8.0]
    got = Normalize(mean, std)(image)
    for channel in range(3):
        want = (image[2 - channel] * 255 - mean[channel]) / std[channel]
        np.testing.assert_allclose(got[channel].numpy(), want.numpy(), rtol=1e-6, atol=1e-6)
    got = Normalize(mean, std, to_bgr255=False)(image)
    assert torch.equal(got[1], (image[1] - 2.0) / 4.0)
    assert torch.equal(image, before)


def test_to_tensor():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
    tensor, target = ToTensor()(Image.fromarray(pixels), "target")
    assert tensor.dtype == torch.float32 and tensor.is_contiguous() and target == "target"
    assert torch.equal(tensor, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)


def test_flip_mirrors_pixels_and_boxes():
    image, target = sample()
    flipped, mirrored = RandomHorizontalFlip(1.0)(image, target)
    assert np.array_equal(np.asarray(flipped), np.asarray(image)[:, ::-1])
    # x' = width - x - 1 with inclusive corners: pixel columns 10 .. 100 become 79 .. 169
    assert mirrored.bbox.tolist() == [[79, 20, 169, 80]]
    same, target2 = RandomHorizontalFlip(0.0)(image, target)
    assert same is image and target2 is target


def test_flip_probability():
    image, target = sample()
    flip = RandomHorizontalFlip(0.25)
    count = sum(flip(image, target)[0] is not image for _ in range(400))
    assert 60 < count < 140


def test_resize_draws_from_all_sizes_and_takes_one_argument():
    random.seed(1)
    drawn = Counter(Resize((20, 30), 1000).get_size((100, 50))[0] for _ in range(100))
    assert set(drawn) == {20, 30} and min(drawn.values()) > 30
    assert Resize(60, 1000)(sample()[0]).size == (90, 60)
    assert Resize(60, None).get_size((1000, 10)) == (60, 6000)


def test_resize_never_reaches_zero_pixels():
    height, width = Resize(8, 100).get_size((5000, 2))
    assert height >= 1 and width >= 1


def test_resize_without_boxes():
    image, _ = sample()
    empty = BoxList(torch.zeros(0, 4), image.size)
    image, empty = Compose([Resize(60, 1000), RandomHorizontalFlip(1.0)])(image, empty)
    assert len(empty) == 0 and empty.size == image.size == (90, 60)


def test_build_transforms_reads_the_config():
    cfg = defaults.clone()
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (640, 800), "INPUT.MIN_SIZE_TEST", 700,
                         "INPUT.HORIZONTAL_FLIP_PROB_TRAIN", 0.3])
    resize, flip, to_tensor, normalize = build_transforms(cfg, True).transforms
    assert resize.min_size == (640, 800) and resize.max_size == 1333 and flip.prob == 0.3
    assert isinstance(to_tensor, ToTensor)
    assert list(normalize.mean) == [102.9801, 115.9465, 122.7717] and normalize.to_bgr255
    resize, flip = build_transforms(cfg, False).transforms[:2]
    assert resize.min_size == (700,) and flip.prob == 0


def test_size_range_includes_both_ends():
    cfg = defaults.clone()
    cfg.merge_from_list(["INPUT.MIN_SIZE_RANGE_TRAIN", (640, 800)])
    assert build_transforms(cfg, True).transforms[0].min_size == tuple(range(640, 801))
    cfg.merge_from_list(["INPUT.MIN_SIZE_RANGE_TRAIN", (800, 640)])
    with pytest.raises(ValueError, match="MIN_SIZE_RANGE_TRAIN"):
        build_transforms(cfg, True)


def test_compose_prints_what_it_does():
    assert repr(Compose([Resize((8, 9), 10), RandomHorizontalFlip(), ToTensor()])) == (
        "Compose(Resize(min_size=(8, 9), max_size=10), RandomHorizontalFlip(prob=0.5), ToTensor())")
