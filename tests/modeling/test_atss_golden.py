"""ATSS and RetinaNet against the numbers of the code bases that this package succeeds (see tests/golden/README.md)."""
import pytest
import torch

from fcos_core.modeling.rpn.atss import targets
from fcos_core.modeling.rpn.rpn import build_rpn
from tests.golden import checks, recipe
from tests.golden.checks import plain_convolutions  # noqa: F401  (a fixture that every test here uses)
from tests.reference.atss import nearest_anchors_of_the_recorded_runs

# Ten times the difference between the float32 and the float64 run of the original; for the light variants, which were
# run in one precision, those of the model they vary.
# file: losses, samples of maps, gradient norm (median, worst), gradient product, boxes in pixels, scores
ATSS = (1e-6, 5e-5, 2e-6, 1e-4, 2e-3, 3e-3, 2e-5)
TOLERANCES = {
    "atss_R_50_FPN_1x": ATSS,
    "var_atss_IoU": ATSS,
    "var_atss_POINT": ATSS,
    "var_atss_SSC": ATSS,
    "var_atss_anchors9": ATSS,
    "retinanet_R-50-FPN_1x": (8e-7, 3e-5, 2e-7, 2e-6, 3e-5, 4e-4, 2e-6),
}
HEADS = recipe.Golden("atss_heads.npz")

# In these, anchors at the same distance from a box were taken by no rule, and the choice shows.  The others go as the
# package goes.
WITH_TIES = ("var_atss_anchors9", "atss_topk5_w1")


@pytest.fixture
def ties_as_recorded(monkeypatch):
    def apply(name):
        if name in WITH_TIES:
            monkeypatch.setattr(targets, "nearest_anchors", nearest_anchors_of_the_recorded_runs)

    return apply


@pytest.mark.parametrize("name,recorded,computed", checks.runs(TOLERANCES))
def test_whole_model(name, recorded, computed, device, request, ties_as_recorded):
    ties_as_recorded(name)
    with recipe.portable_arithmetic(request, computed, device):
        checks.check_whole_model(name, recorded, computed, TOLERANCES[name], device)


@pytest.mark.parametrize("name", [n for n in TOLERANCES if "targets/img0/labels" in recipe.Golden(n + ".npz")])
def test_targets_of_the_batch(name, ties_as_recorded):
    ties_as_recorded(name)
    golden = recipe.Golden(name + ".npz")
    module = build_rpn(checks.config_of(golden), 64)
    anchors = module.anchor_generator.level_anchors([(-(-192 // s), -(-224 // s)) for s in (8, 16, 32, 64, 128)])
    loss = module.loss_evaluator
    labels, encoded = loss.prepare_targets(checks.make_targets(["A", "B"]), anchors)
    flat = torch.cat([level.reshape(-1, 4) for level in anchors])
    for i in range(2):
        recorded = golden["targets/img{}/labels".format(i)]
        assert labels[i].tolist() == recorded.tolist()
        positive = labels[i] > 0
        recipe.assert_close(encoded[i][positive], golden["targets/img{}/reg_pos".format(i)], 1e-6, "boxes")
        centerness = loss.compute_centerness_targets(encoded[i][positive], flat[positive])
        recipe.assert_close(centerness, golden["targets/img{}/centerness_pos".format(i)], 1e-6, "centerness")


@pytest.mark.parametrize("name", [n for n in TOLERANCES if "f32/sgd/losses" in recipe.Golden(n + ".npz")])
def test_four_optimizer_steps(name):
    checks.check_optimizer_steps(name, TOLERANCES[name][0])


@pytest.mark.parametrize("variant,precision", checks.head_runs(HEADS))
def test_head_options(variant, precision, ties_as_recorded):
    ties_as_recorded(variant)
    checks.check_head(HEADS, variant, precision, ["MODEL.ATSS_ON", True])


@pytest.mark.parametrize("name", ["atss_R_50_FPN_1x", "var_atss_POINT"])
def test_the_stand_in_for_ties_agrees_where_ties_do_not_show(name, monkeypatch):
    """Not to hide errors of the package's own search."""
    golden = recipe.Golden(name + ".npz")
    module = build_rpn(checks.config_of(golden), 64)
    anchors = module.anchor_generator.level_anchors([(-(-192 // s), -(-224 // s)) for s in (8, 16, 32, 64, 128)])
    mine = module.loss_evaluator.batch_targets(checks.make_targets(["A", "B"]), anchors)[0]
    monkeypatch.setattr(targets, "nearest_anchors", nearest_anchors_of_the_recorded_runs)
    assert torch.equal(mine, module.loss_evaluator.batch_targets(checks.make_targets(["A", "B"]), anchors)[0])
