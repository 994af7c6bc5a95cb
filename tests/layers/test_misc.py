"""Old layer names are torch's own layers, which take empty batches."""
import pytest
import torch
from torch.nn import functional as F

from fcos_core.layers import misc


@pytest.mark.parametrize(
    "layer,shape",
    [
        (misc.Conv2d(4, 6, 3, padding=1), (0, 6, 8, 8)),
        (misc.ConvTranspose2d(4, 6, 2, 2), (0, 6, 16, 16)),
        (misc.BatchNorm2d(4), (0, 4, 8, 8)),
        (misc.BatchNorm2d(4).eval(), (0, 4, 8, 8)),
        (lambda x: misc.interpolate(x, scale_factor=2), (0, 4, 16, 16)),
        (lambda x: misc.interpolate(x, size=(5, 7), mode="bilinear", align_corners=False), (0, 4, 5, 7)),
    ],
)
def test_empty_batches(layer, shape):
    x = torch.zeros(0, 4, 8, 8, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == shape and x.grad.shape == x.shape


def test_interpolate_is_that_of_torch():
    x = torch.rand(1, 2, 4, 6)
    assert torch.equal(misc.interpolate(x, size=(9, 5)), F.interpolate(x, size=(9, 5)))
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    assert torch.equal(misc.interpolate(x, None, 2, "bilinear", True), expected)
