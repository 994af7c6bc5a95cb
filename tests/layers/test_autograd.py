"""What all operators share as nodes of the graph of autograd; their gradients are tested beside each of them."""

import pytest
import torch

from fcos_core.layers._library import load

ROIS = torch.tensor([[0.0, 1.0, 1.0, 6.0, 6.0]])

# operator: a call whose gradient of a [2, 4, 8, 8] tensor is not zero
CALLS = {
    "DeformConv": lambda ops, x: ops.deform_conv(
        x, torch.ones(3, 4, 1, 1), torch.zeros(2, 2, 8, 8), None, None, [1, 1], [0, 0], [1, 1], 1, 1
    ),
    "DeformPsroiPooling": lambda ops, x: ops.deform_psroi_pooling(x, ROIS, None, 1.0, 1, 2, 2, 2, 2, 0.1)[0],
    "GroupNormRelu": lambda ops, x: ops.group_norm_relu(x, torch.ones(4), torch.zeros(4), 2, 1e-5)[0],
    "IouLoss": lambda ops, x: ops.iou_loss(x.reshape(-1, 4).abs() + 1, torch.ones(128, 4), None, 0, 2),
    "RoiAlign": lambda ops, x: ops.roi_align(x, ROIS, 1.0, 2, 2, 2, False),
    "RoiPool": lambda ops, x: ops.roi_pool(x, ROIS, 1.0, 2, 2)[0],
    "SigmoidFocalLoss": lambda ops, x: ops.sigmoid_focal_loss(
        x.reshape(-1, 4), torch.arange(128) % 5, 2.0, 0.25, 2
    ),
}


@pytest.fixture(scope="module", autouse=True)
def library():
    load()


def sample():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 8, 8, generator=generator).requires_grad_()


@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_node_has_the_name_of_its_operator(name):
    node = CALLS[name](torch.ops.fcos_core, sample()).grad_fn
    assert node.name().count(name) == 1
    assert not any(other in node.name().replace(name, "") for other in CALLS)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_one_graph_twice_and_among_others(name):
    x = sample()
    results = {other: CALLS[other](torch.ops.fcos_core, x).sum() for other in CALLS}
    (first,) = torch.autograd.grad(results[name], x, retain_graph=True)
    (together,) = torch.autograd.grad(sum(results.values()), x, retain_graph=True)
    (again,) = torch.autograd.grad(results[name], x)
    assert torch.equal(first, again)
    assert not torch.equal(first, together)
    alone = sum(torch.autograd.grad(CALLS[other](torch.ops.fcos_core, x).sum(), x)[0] for other in CALLS)
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_without_gradients_there_is_no_graph(name):
    assert CALLS[name](torch.ops.fcos_core, sample().detach()).grad_fn is None
    with torch.no_grad():
        assert CALLS[name](torch.ops.fcos_core, sample()).grad_fn is None


# RoIAlign and RoI pooling keep no input; the boxes of the IoU loss are computed anew
@pytest.mark.parametrize("name", sorted(set(CALLS) - {"RoiAlign", "RoiPool", "IouLoss"}))
def test_an_input_that_was_changed_in_place_is_refused(name):
    features = sample() * 1
    result = CALLS[name](torch.ops.fcos_core, features).sum()
    features.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_anomaly_mode_names_the_operator():
    x = sample()
    with torch.autograd.detect_anomaly():
        result = torch.ops.fcos_core.roi_align(x, ROIS, 1.0, 4, 4, 2, False)
        # a pixel between two bins has a part of both: the operator is the first to have a nan
        infinite = torch.full_like(result, float("inf"))
        infinite[..., ::2] *= -1
        with pytest.raises(RuntimeError, match="RoiAlign.* returned nan"):
            result.backward(infinite)
