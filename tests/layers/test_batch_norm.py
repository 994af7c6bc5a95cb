"""Batch normalisation with constant statistics."""
import pytest
import torch

from fcos_core.layers.batch_norm import FrozenBatchNorm2d


def filled(channels, dtype=torch.float32):
    norm = FrozenBatchNorm2d(channels).to(dtype)
    norm.weight.uniform_(0.5, 2)
    norm.bias.normal_()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def test_formula_without_epsilon(device):
    norm = filled(5, torch.float64).to(device)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, device=device)
    mean, var, weight, bias = (
        b.reshape(1, 5, 1, 1) for b in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    assert torch.allclose(norm(x), (x - mean) / var.sqrt() * weight + bias, rtol=1e-12, atol=1e-12)


def test_nothing_is_trained_or_updated():
    norm = filled(4)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm.train()(torch.randn(3, 4, 5, 5))
    assert list(norm.parameters()) == []
    assert list(before) == ["weight", "bias", "running_mean", "running_var"]
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_starts_as_identity():
    x = torch.randn(2, 6, 3, 3)
    assert torch.equal(FrozenBatchNorm2d(6)(x), x)


def test_gradient():
    norm = filled(3, torch.float64)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


NEEDS_AUTOCAST = pytest.mark.skipif(not hasattr(torch, "autocast"), reason="this torch has no bfloat16 autocast")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, pytest.param(torch.bfloat16, marks=NEEDS_AUTOCAST)])
def test_dtype_of_the_map_is_kept(dtype):
    assert filled(3)(torch.randn(1, 3, 4, 4).to(dtype)).dtype == dtype


def test_channels_last_is_kept(device):
    norm = filled(8).to(device)
    x = torch.randn(2, 8, 5, 7, device=device)
    y = norm(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y, norm(x), atol=1e-6)


def test_empty_batch():
    assert filled(3)(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)
