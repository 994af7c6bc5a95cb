"""IoU losses against recorded numbers and against the geometry of boxes."""
import pytest
import torch

from fcos_core.layers.iou_loss import LOSS_TYPES, IOULoss, iou_loss
from tests.golden import recipe

GOLDEN = recipe.Golden("structures.npz")


def golden_input(key, dtype):
    return torch.from_numpy(GOLDEN["iou_loss/" + key]).to(dtype)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("weighted", ["w", "now"])
@pytest.mark.parametrize("precision,dtype,tolerance", [("f32", torch.float32, 1e-6), ("f64", torch.float64, 1e-13)])
def test_value_and_gradient_against_golden(loss_type, weighted, precision, dtype, tolerance, device):
    prefix = f"iou_loss/{loss_type}/{weighted}/{precision}/"
    pred = golden_input("pred", dtype).to(device).requires_grad_()
    weight = golden_input("weight", dtype).to(device) if weighted == "w" else None
    loss = IOULoss(loss_type)(pred, golden_input("target", dtype).to(device), weight)
    loss.backward()
    recipe.assert_close(loss.item(), GOLDEN[prefix + "value"], tolerance, "loss")
    recipe.assert_close(pred.grad.cpu().numpy(), GOLDEN[prefix + "grad"], 5 * tolerance, "gradient")


def test_weights_without_sum_are_ignored():
    """Legacy: with weights that sum to 0 the plain sum is returned."""
    pred, target = golden_input("pred", torch.float32), golden_input("target", torch.float32)
    loss = IOULoss("iou")(pred, target, torch.zeros(len(pred)))
    recipe.assert_close(loss.item(), GOLDEN["iou_loss/iou/zero_weight/value"], 1e-6, "loss")
    assert loss == IOULoss("iou")(pred, target)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_agrees_with_boxes(loss_type):
    """The same from corners: boxes around the origin, areas smoothed by one, enclosing box."""
    pred, target = torch.rand(20, 4, dtype=torch.float64) * 9, torch.rand(20, 4, dtype=torch.float64) * 9
    sign = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    expected = []
    for a, b in zip((pred * sign).tolist(), (target * sign).tolist()):
        intersection = (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
        enclosing = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1])) + 1e-7
        iou = torch.tensor((intersection + 1) / (union + 1), dtype=torch.float64)
        losses = {"iou": -iou.log(), "linear_iou": 1 - iou, "giou": 1 - iou + (enclosing - union) / enclosing}
        expected.append(losses[loss_type])
    assert torch.allclose(iou_loss(pred, target, loss_type), torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradient_is_that_of_finite_differences(loss_type):
    pred = (torch.rand(5, 4, dtype=torch.float64) * 9 + 0.5).requires_grad_()
    target = torch.rand(5, 4, dtype=torch.float64) * 9 + 0.5
    weight = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: IOULoss(loss_type)(p, target, weight), (pred,))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_perfect_prediction_costs_nothing(loss_type):
    boxes = torch.rand(6, 4) * 50 + 1
    assert iou_loss(boxes, boxes, loss_type).abs().max() < 1e-5


def test_any_leading_shape():
    pred, target = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    dense = iou_loss(pred, target, "giou")
    assert dense.shape == (2, 3)
    assert torch.equal(dense.reshape(-1), iou_loss(pred.reshape(-1, 4), target.reshape(-1, 4), "giou"))


@pytest.mark.parametrize("weight", [None, torch.zeros(0)])
def test_no_boxes(weight):
    pred = torch.zeros(0, 4, requires_grad=True)
    loss = IOULoss("giou")(pred, torch.zeros(0, 4), weight)
    loss.backward()
    assert loss.item() == 0 and pred.grad.shape == (0, 4)


def test_half_precision_does_not_overflow():
    pred, target = torch.full((1, 4), 500.0), torch.full((1, 4), 400.0)  # areas beyond the largest float16
    loss = iou_loss(pred.half(), target.half(), "iou")
    assert loss.dtype == torch.float32 and torch.allclose(loss, iou_loss(pred, target, "iou"))


def test_unknown_type():
    for make in (lambda: IOULoss("diou"), lambda: iou_loss(torch.ones(1, 4), torch.ones(1, 4), "diou")):
        with pytest.raises(ValueError, match="one of iou, linear_iou, giou, got 'diou'"):
            make()
