"""The learned scalar factor."""
import torch

from fcos_core.layers.scale import Scale


def test_scale():
    scale = Scale(1.5)
    x = torch.rand(2, 3, 4, 5)
    y = scale(x)
    assert torch.equal(y, 1.5 * x)
    y.sum().backward()
    assert torch.allclose(scale.scale.grad, x.sum().reshape(1))
    assert [(name, tuple(value.shape)) for name, value in scale.state_dict().items()] == [("scale", (1,))]
    assert Scale().scale.item() == 1.0 and Scale(2).scale.dtype == torch.float32
