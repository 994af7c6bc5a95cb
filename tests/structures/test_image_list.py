"""Batching of images by zero padding."""
import pytest
import torch

from fcos_core.structures.image_list import ImageList, to_image_list

TALL, WIDE = torch.rand(3, 64, 33) + 1, torch.rand(3, 50, 70) + 1


@pytest.mark.parametrize("divisor,padded", [(0, (64, 70)), (1, (64, 70)), (32, (64, 96)), (128, (128, 128))])
def test_padding_is_zero_right_and_below(divisor, padded):
    batch = to_image_list([WIDE, TALL], divisor)
    assert batch.tensors.shape == (2, 3) + padded
    assert [tuple(size) for size in batch.image_sizes] == [(50, 70), (64, 33)]
    for image, padded_image in zip((WIDE, TALL), batch.tensors):
        height, width = image.shape[1:]
        assert torch.equal(padded_image[:, :height, :width], image)
        assert (padded_image != 0).sum() == image.numel()


@pytest.mark.parametrize("divisor,padded", [(0, (50, 70)), (32, (64, 96))])
def test_single_image(divisor, padded):
    for single in (WIDE, [WIDE], (WIDE,), WIDE[None]):
        batch = to_image_list(single, divisor)
        assert batch.tensors.shape == (1, 3) + padded
        assert [tuple(size) for size in batch.image_sizes] == [(50, 70)]


def test_batch_that_fits_is_not_copied():
    images = torch.rand(2, 3, 64, 96)
    batch = to_image_list(images, 32)
    assert batch.tensors.data_ptr() == images.data_ptr()
    assert [tuple(size) for size in batch.image_sizes] == [(64, 96)] * 2


def test_batch_that_does_not_fit_is_padded():
    batch = to_image_list(torch.rand(2, 3, 50, 70), 32)
    assert batch.tensors.shape == (2, 3, 64, 96) and [tuple(s) for s in batch.image_sizes] == [(50, 70)] * 2


def test_image_list_passes_through():
    batch = to_image_list([WIDE, TALL])
    assert to_image_list(batch, 32) is batch


def test_dtype_follows_the_images():
    assert to_image_list([WIDE.double(), TALL.double()]).tensors.dtype == torch.float64
    assert to_image_list([WIDE.byte()], 32).tensors.dtype == torch.uint8


def test_to(device):
    batch = to_image_list([WIDE, TALL], 32)
    moved = batch.to(device, non_blocking=True)
    assert moved.tensors.device.type == device.type and moved.image_sizes == batch.image_sizes
    assert batch.to(torch.float64).tensors.dtype == torch.float64 and len(moved) == 2


def test_pin_memory(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    pinned = ImageList(torch.zeros(1, 3, 2, 2), [(2, 2)]).pin_memory()
    assert pinned.tensors.sum() == 12 and pinned.image_sizes == [(2, 2)]


@pytest.mark.parametrize(
    "images,error,message",
    [
        ([], ValueError, "at least one image"),
        ([WIDE, WIDE[:1]], ValueError, r"same C in all, got shapes \[\[3, 50, 70\], \[1, 50, 70\]\]"),
        ([WIDE[0]], ValueError, "at least one image"),
        (WIDE[0, 0], ValueError, r"got \[70\]"),
        ("image.png", TypeError, "got str"),
    ],
)
def test_wrong_images(images, error, message):
    with pytest.raises(error, match=message):
        to_image_list(images)
