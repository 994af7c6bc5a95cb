"""Smooth L1 loss."""
import pytest
import torch

from fcos_core.layers.smooth_l1_loss import smooth_l1_loss
from tests.golden import recipe

GOLDEN = recipe.Golden("structures.npz")


def test_against_golden():
    values = torch.from_numpy(GOLDEN["smooth_l1/input"])
    zeros = torch.zeros_like(values)
    total = smooth_l1_loss(values, zeros, beta=0.11, size_average=False)
    recipe.assert_close(total.item(), GOLDEN["smooth_l1/beta0.11_sum_vs_zero"], 1e-6, "sum")
    recipe.assert_close(smooth_l1_loss(values, zeros).item(), GOLDEN["smooth_l1/beta1_9_mean_vs_zero"], 1e-6, "mean")


def test_gradient():
    values = torch.tensor([-3.0, -0.05, 0.02, 0.7], dtype=torch.float64, requires_grad=True)
    target = torch.zeros(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: smooth_l1_loss(v, target, beta=0.11), (values,))


@pytest.mark.parametrize("beta", [0.11, 1.0])
def test_parabola_meets_line(beta):
    zero = torch.zeros(1, dtype=torch.float64)
    below, above = (smooth_l1_loss(zero + beta * (1 + e), zero, beta, False) for e in (-1e-9, 1e-9))
    assert abs(below - above) < 1e-8 and abs(above - beta / 2) < 1e-8
