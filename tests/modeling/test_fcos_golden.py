"""FCOS against the numbers of the code base that this package succeeds (see tests/golden/README.md)."""
import pytest
import torch

from fcos_core.modeling.rpn.rpn import build_rpn
from tests.golden import checks, recipe
from tests.golden.checks import plain_convolutions  # noqa: F401  (a fixture that every test here uses)

# Ten times the difference between the float32 and the float64 run of the original; for the light variants, which were
# run in one precision, those of the model they vary.
# file: losses, samples of maps, gradient norm (median, worst), gradient product, boxes in pixels, scores
PLAIN = (1e-6, 5e-5, 2e-6, 2e-5, 3e-4, 2e-3, 2e-5)
IMPROVED = (3e-6, 5e-5, 2e-6, 8e-5, 1e-3, 2e-3, 2e-5)
TOLERANCES = {
    "fcos_R_50_FPN_1x": PLAIN,
    "fcos_R_101_FPN_2x": (2e-6, 8e-5, 2e-4, 2e-3, 2e-2, 2e-3, 2e-5),
    "fcos_imprv_R_50_FPN_1x": IMPROVED,
    "atsspkg_fcos_imprv_R_50_FPN_1x": IMPROVED,
    "fcos_imprv_dcnv2_R_50_FPN_1x": (3e-6, 2e-5, 9e-5, 2e-2, 3e-2, 2e-3, 1e-5),
    "fcos_bn_bs16_MNV2_FPN_1x": (9e-6, 1e-4, 2e-3, 7e-2, 1.0, 4e-3, 3e-5),
    "var_fcos_center_sampling": PLAIN,
    "var_fcos_giou": PLAIN,
    "var_fcos_linear_iou": PLAIN,
    "var_fcos_norm": PLAIN,
    "var_fcos_imprv_iou": IMPROVED,
}
HEADS = recipe.Golden("heads.npz")


@pytest.mark.parametrize("name,recorded,computed", checks.runs(TOLERANCES))
def test_whole_model(name, recorded, computed, device, request):
    with recipe.portable_arithmetic(request, computed, device):
        checks.check_whole_model(name, recorded, computed, TOLERANCES[name], device)


@pytest.mark.parametrize("name", [n for n in TOLERANCES if "targets/labels0" in recipe.Golden(n + ".npz")])
def test_targets_of_the_batch(name):
    golden = recipe.Golden(name + ".npz")
    cfg = checks.config_of(golden)
    module = build_rpn(cfg, 64)
    features = [torch.zeros(2, 64, -(-192 // s), -(-224 // s)) for s in cfg.MODEL.FCOS.FPN_STRIDES]
    locations = module.compute_locations(features)
    labels, distances = module.loss_evaluator.prepare_targets(locations, checks.make_targets(["A", "B"]))
    for level in range(5):
        assert labels[level].tolist() == golden["targets/labels{}".format(level)].tolist()
        recipe.assert_close(
            distances[level][labels[level] > 0].numpy(), golden["targets/reg_pos{}".format(level)], 1e-6, "distances"
        )


@pytest.mark.parametrize("name", [n for n in TOLERANCES if "f32/sgd/losses" in recipe.Golden(n + ".npz")])
def test_four_optimizer_steps(name):
    checks.check_optimizer_steps(name, TOLERANCES[name][0])


@pytest.mark.parametrize("variant,precision", checks.head_runs(HEADS))
def test_head_options(variant, precision):
    checks.check_head(HEADS, variant, precision)
