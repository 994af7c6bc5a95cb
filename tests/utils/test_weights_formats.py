"""Weights of other frameworks: names, there and back, and what means something else there."""
import gzip
import json
import os
import re

import pytest
import torch

from fcos_core.modeling.box_coder import CenteredBoxCoder
from fcos_core.utils.weights_formats import FORMATS, find_format, interpret
from fcos_core.utils.weights_formats.base import drop_scales, same_value
from fcos_core.utils.weights_formats.description import describe
from fcos_core.utils.weights_formats.norms import EPSILON, fold_epsilon, unfold_epsilon
from fcos_core.utils.weights_formats.templates import Renaming, Template
from fcos_core.utils.weights_formats.torchvision import COCO_IDS
from tests.golden import recipe
from tests.utils import foreign

IMPROVED = {"MODEL.FCOS.NORM_REG_TARGETS": True, "MODEL.FCOS.CENTERNESS_ON_REG": True}
with gzip.open(os.path.join(recipe.HERE, "mmdet_names.json.gz"), "rt") as stream:
    MMDET = json.load(stream)
with gzip.open(os.path.join(recipe.HERE, "state_dicts.json.gz"), "rt") as stream:
    MODELS = json.load(stream)["models"]


def empty_tensors(names):
    """A state dict of zeros where only the names matter."""
    convs = {name: torch.zeros(2, 2, 3, 3) for name in names if "conv" in name and name.endswith(".weight")}
    return {name: convs.get(name, torch.zeros(1)) for name in names}


# ------------------------------------------------------------------------------------------------------------ templates
def test_a_rule_translates_both_ways():
    renaming = Renaming([("tower.{3*n}.{p}", "convs.{n}.conv.{p}"), ("tower.{3*n+1}.{p}", "convs.{n}.gn.{p}")])
    for ours, theirs in (("tower.6.weight", "convs.2.conv.weight"), ("tower.7.bias", "convs.2.gn.bias")):
        assert renaming.to_theirs(ours) == theirs and renaming.to_ours(theirs) == ours
    assert renaming.to_theirs("tower.8.weight") is None and renaming.to_ours("convs.2.relu.weight") is None


def test_a_number_below_the_first_does_not_fit():
    assert Template("res{i+1}.{p}").parse("res0.weight") is None
    assert Template("res{i+1}.{p}").parse("res5.running_mean") == {"i": 4, "p": "running_mean"}
    assert Template("a.{p}").parse("a.b.weight") is None and Template("a.{p}").parse("xa.weight") is None


# ------------------------------------------------------------------------------------------------- there and back again
def anchors_of_mmdet(state):
    """An ATSS model that mmdetection can express: its anchors, and no biases before the norms of the towers."""
    for level, stride in enumerate((8, 16, 32, 64, 128)):
        reach = (8 * stride - 1) / 2.0
        state["rpn.anchor_generator.cell_anchors.{}".format(level)] = torch.tensor([[-reach, -reach, reach, reach]])
    for name in state:
        if "_tower" in name and name.endswith(".bias") and state[name[: -len("bias")] + "weight"].dim() == 4:
            state[name] = torch.zeros_like(state[name])
    return state


WAYS = {
    "torchvision": (foreign.TORCHVISION, foreign.same_scales),
    "detectron2": (dict(IMPROVED, **foreign.DEFORMABLE), foreign.same_scales),
    "adelaidet": (dict(IMPROVED, **{"MODEL.FCOS.USE_DCN_IN_TOWER": True}), dict),
    "mmdet": (dict(foreign.DEFORMABLE, **{"MODEL.FCOS.USE_DCN_IN_TOWER": True}), dict),
    "mmdet-atss": (dict(foreign.ATSS, **{"MODEL.FPN.RELU_BEFORE_P7": False}), anchors_of_mmdet),
}


@pytest.mark.parametrize("name", sorted(WAYS))
def test_there_and_back_is_the_same_bit_for_bit(name):
    settings, adapt = WAYS[name]
    cfg, model = foreign.detector(settings)
    ours = adapt(dict(model.state_dict()))
    theirs, notes = FORMATS[name].write(ours, cfg)
    assert notes and find_format(theirs).name == name
    back = interpret({"model": theirs}, model_state=model.state_dict())
    assert not back.unknown and sorted(back.state) == sorted(ours)
    assert [key for key in ours if not torch.equal(back.state[key], ours[key])] == []


def test_pyramids_of_torchvision_before_0_14():
    """Its published weights: a convolution of the pyramid was not yet inside a Sequential."""
    cfg, model = foreign.detector(foreign.TORCHVISION)
    ours = foreign.same_scales(model.state_dict())
    theirs, _ = FORMATS["torchvision"].write(ours, cfg)
    old = {re.sub(r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2.", key): value for key, value in theirs.items()}
    assert len(set(old) - set(theirs)) == 12
    back = interpret({"model": old}, model_state=model.state_dict())
    assert not back.unknown and all(torch.equal(back.state[key], ours[key]) for key in ours)


@pytest.mark.parametrize("name", ["torchvision-resnet", "detectron2-resnet"])
def test_bodies_there_and_back(name):
    ours = foreign.detector()[1].state_dict()
    theirs, _ = FORMATS[name].write(ours)
    assert find_format(theirs).name == name
    back = interpret({"model": theirs}).state
    prefix = "backbone.body."
    body = {key[len(prefix) :]: value for key, value in ours.items() if key.startswith(prefix)}
    assert sorted(back) == sorted(body) and all(torch.equal(back[key], body[key]) for key in body)


def test_trained_batch_norms_keep_their_epsilon_and_count():
    norms = {"MODEL.RESNETS.TRANS_FUNC": "BottleneckWithBatchNorm", "MODEL.RESNETS.STEM_FUNC": "StemWithBatchNorm"}
    cfg, model = foreign.detector(dict(norms, **foreign.TORCHVISION))
    ours = foreign.same_scales(model.state_dict())
    theirs, _ = FORMATS["torchvision"].write(ours, cfg)
    assert torch.equal(theirs["backbone.body.bn1.running_var"], ours["backbone.body.stem.bn1.running_var"])
    back = interpret({"model": theirs}, model_state=model.state_dict()).state
    assert sorted(back) == sorted(ours) and all(torch.equal(back[key], ours[key]) for key in ours)


# ---------------------------------------------------------------------------------------------- names of other packages
def test_names_are_those_of_torchvision():
    pytest.importorskip("torchvision.models.detection.fcos")
    # the blocks of the FPN became modules of modules in torchvision 0.14, which renames those of older files
    expected = {
        re.sub(r"((inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\3", name): tuple(value.shape)
        for name, value in foreign.torchvision_detector().state_dict().items()
    }
    cfg, model = foreign.detector(dict(foreign.TORCHVISION, **foreign.TORCHVISION_WIDTHS), filled=False)
    written, _ = FORMATS["torchvision"].write(foreign.same_scales(model.state_dict()), cfg)
    assert {name: tuple(value.shape) for name, value in written.items()} == expected


@pytest.mark.parametrize(
    "key, name", [("fcos_r50", "mmdet"), ("fcos_r50_improved", "mmdet"), ("atss_r50", "mmdet-atss")]
)
def test_names_are_those_of_mmdetection(key, name):
    """Of models that mmdetection built: every tensor finds its place, and ours needs no other."""
    theirs = {entry: torch.zeros(shape) for entry, shape in MMDET["mmdet_" + key]}
    weights = interpret({"model": theirs})
    assert weights.format == name and not weights.unknown
    assert {entry.rsplit(".", 1)[1] for entry in weights.ignored} == {"num_batches_tracked"}
    settings = describe(weights.state)
    assert settings["MODEL.BACKBONE.CONV_BODY"] == "R-50-FPN-RETINANET"
    recorded = MODELS["atss/atss_R_50_FPN_1x.yaml" if "atss" in key else "fcos/fcos_R_50_FPN_1x.yaml"]
    assert {entry[0]: entry[1] for entry in recorded} == {k: list(v.shape) for k, v in weights.state.items()}


def body_of_detectron2(prefix):
    """Names of a ResNet-50 there, spelled out."""
    convs = [prefix + "stem.conv1"]
    for stage, blocks in zip((2, 3, 4, 5), (3, 4, 6, 3)):
        for block in range(blocks):
            layers = ["shortcut"] * (block == 0) + ["conv1", "conv2", "conv3"]
            convs += ["{}res{}.{}.{}".format(prefix, stage, block, layer) for layer in layers]
    norms = ["{}.norm.{}".format(c, p) for c in convs for p in ("weight", "bias", "running_mean", "running_var")]
    return [conv + ".weight" for conv in convs] + norms


def fcos_of(package):
    """Names of the R-50 FCOS of detectron2, which has no scales, or of AdelaiDet, spelled out."""
    head = "head." if package == "detectron2" else "proposal_generator.fcos_head."
    towers = ("cls_subnet", "bbox_subnet") if package == "detectron2" else ("cls_tower", "bbox_tower")
    modules = ["backbone.fpn_{}{}".format(kind, i) for kind in ("lateral", "output") for i in (3, 4, 5)]
    modules += ["backbone.top_block.p6", "backbone.top_block.p7"]
    modules += ["{}{}.{}".format(head, tower, i) for tower in towers for i in (0, 1, 3, 4, 6, 7, 9, 10)]
    modules += [head + ("cls_score" if package == "detectron2" else "cls_logits"), head + "bbox_pred", head + "ctrness"]
    scales = [head + "scales.{}.scale".format(i) for i in range(5)] if package == "adelaidet" else []
    names = [module + "." + parameter for module in modules for parameter in ("weight", "bias")]
    return body_of_detectron2("backbone.bottom_up.") + names + scales


@pytest.mark.parametrize("package", ["detectron2", "adelaidet"])
def test_names_are_those_of_detectron2_and_its_relative(package):
    names = fcos_of(package)
    weights = interpret({"model": empty_tensors(names)})
    assert (weights.format, weights.unknown) == (package, [])
    assert sorted(weights.state) == sorted(entry[0] for entry in MODELS["fcos/fcos_R_50_FPN_1x.yaml"])


def test_bookkeeping_of_detectron2_is_left_out_but_its_mean_is_read():
    theirs = empty_tensors(fcos_of("detectron2"))
    theirs["pixel_mean"] = torch.tensor([123.675, 116.28, 103.53]).reshape(3, 1, 1)
    theirs["pixel_std"] = torch.tensor([58.395, 57.12, 57.375]).reshape(3, 1, 1)
    weights = interpret({"model": theirs})
    assert sorted(weights.ignored) == ["pixel_mean", "pixel_std"] and not weights.unknown
    assert weights.assumed["INPUT.PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert weights.assumed["INPUT.PIXEL_STD"] == [58.395, 57.12, 57.375]


# ------------------------------------------------------------------------------------------------- what means otherwise
def test_epsilon_of_batch_norms():
    variance = torch.tensor([1e-12, 3e-6, 1e-5, 2e-5, 0.3, 1.0, 70.0])
    x, one = torch.tensor([2.0]), torch.ones(7)
    theirs = x / (variance.double() + EPSILON).sqrt()
    assert torch.allclose((x * fold_epsilon(variance).rsqrt()).double(), theirs, rtol=1e-6)
    state = {"n.weight": one, "n.bias": one, "n.running_mean": one, "n.running_var": variance}
    unfolded = unfold_epsilon(state, counts_batches=True)
    assert unfolded["n.num_batches_tracked"].item() == 0 and bool((unfolded["n.running_var"] > 0).all())
    mine = x * variance.double().rsqrt()
    factor = unfolded["n.weight"].double() * (unfolded["n.running_var"].double() + EPSILON).rsqrt()
    assert torch.allclose(x * factor, mine, rtol=1e-6)
    assert state["n.running_var"] is variance and torch.equal(state["n.weight"], one)  # a copy was changed


def test_folding_undoes_unfolding_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    variance = 10.0 ** (torch.rand(100000, generator=generator) * 8 - 4.9)
    state = {"n.weight": torch.ones_like(variance), "n.running_var": variance}
    assert torch.equal(fold_epsilon(unfold_epsilon(state, False)["n.running_var"]), variance)


def test_outputs_of_torchvision_are_coco_ids():
    name = "head.classification_head.cls_logits.bias"
    read = FORMATS["torchvision"].read
    ids = torch.arange(91.0)
    coco = read({name: ids}).state["rpn.head.cls_logits.bias"]
    assert coco.tolist() == COCO_IDS and len(coco) == 80 and COCO_IDS[11] == 13 and COCO_IDS[-1] == 90
    assert read({name: ids}, num_classes=90).state["rpn.head.cls_logits.bias"].tolist() == list(range(1, 91))
    assert read({name: ids[:21]}).state["rpn.head.cls_logits.bias"].tolist() == list(range(1, 21))


def test_writing_torchvision_gives_unused_outputs_no_chance():
    head = {"rpn.head.cls_logits.weight": torch.ones(80, 4, 3, 3), "rpn.head.cls_logits.bias": torch.ones(80)}
    state = dict(head)
    FORMATS["torchvision"].reduce(state)
    unused = [i for i in range(91) if i not in COCO_IDS]
    bias, weight = state["rpn.head.cls_logits.bias"], state["rpn.head.cls_logits.weight"]
    assert bias.shape == (91,) and bool((bias[unused].sigmoid() < 1e-30).all()) and bool((weight[unused] == 0).all())
    assert bool((bias[COCO_IDS] == 1).all()) and bool((weight[COCO_IDS] == 1).all())


def test_scales_are_dropped_only_if_they_are_the_same():
    layer = {"rpn.head.bbox_pred.weight": torch.ones(4, 2), "rpn.head.bbox_pred.bias": torch.ones(4)}
    same = dict(layer, **{"rpn.head.scales.{}.scale".format(i): torch.tensor([2.0]) for i in range(5)})
    drop_scales(same, "them")
    assert sorted(same) == sorted(layer) and bool((same["rpn.head.bbox_pred.weight"] == 2).all())
    other = dict(layer, **{"rpn.head.scales.{}.scale".format(i): torch.tensor([1.0 + i]) for i in range(5)})
    with pytest.raises(ValueError, match="same scale on all levels"):
        drop_scales(other, "them")


def test_boxes_of_mmdetection_come_out_half_a_pixel_smaller_on_each_side():
    """Its decoding by formula (centre and size of the anchor, no inclusive pixel) against ours with the new anchors."""
    state = {"bbox_head.atss_centerness.bias": torch.zeros(1), "bbox_head.atss_centerness.weight": torch.zeros(1)}
    anchors = interpret({"model": state}).state
    deltas = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    for level, stride in enumerate((8, 16, 32, 64, 128)):
        side, column, row = 8.0 * stride, 3, 5
        center = torch.tensor([stride * column, stride * row], dtype=torch.float32)
        middle = center + deltas[:, :2] * 0.1 * side
        size = side * torch.exp(deltas[:, 2:] * 0.2)
        theirs = torch.cat((middle - size / 2, middle + size / 2), dim=1)
        anchor = anchors["rpn.anchor_generator.cell_anchors.{}".format(level)] + center.repeat(2)
        ours = CenteredBoxCoder((10.0, 10.0, 5.0, 5.0)).decode(deltas, anchor.expand(50, 4))
        assert torch.allclose(ours, theirs + torch.tensor([0.5, 0.5, -0.5, -0.5]), atol=1e-3)


CAFFE = "style='caffe', bgr_to_rgb=False, mean=[\n 102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0]"
TORCH = "style='pytorch', img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)"


@pytest.mark.parametrize(
    "text, meaning, pixels",
    [
        (CAFFE, (True, False, False, False), (True, 102.9801, 1.0)),
        (TORCH + "norm_on_bbox=True, centerness_on_reg=True", (False, True, True, False), (False, 0.485, 0.229)),
        (CAFFE + "relu_before_extra_convs=True", (True, False, False, True), (True, 102.9801, 1.0)),
    ],
)
def test_the_config_in_a_file_of_mmdetection_is_believed(text, meaning, pixels):
    names = [entry for entry, _ in MMDET["mmdet_fcos_r50"]]
    state = empty_tensors(names)
    for key in ("config", "cfg"):  # releases 2 and 3
        weights = interpret({"model": state, "meta": {key: text}})
        found = [weights.certain[key] for key in (
            "MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.FCOS.NORM_REG_TARGETS", "MODEL.FCOS.CENTERNESS_ON_REG",
            "MODEL.FPN.RELU_BEFORE_P7")]  # fmt: skip
        assert tuple(found) == meaning
        assumed = weights.assumed
        assert (assumed["INPUT.TO_BGR255"], assumed["INPUT.PIXEL_MEAN"][0]) == pixels[:2]
        assert assumed["INPUT.PIXEL_STD"][0] == pixels[2]
    guessed = interpret({"model": state})
    assert "MODEL.FCOS.NORM_REG_TARGETS" in guessed.assumed and "MODEL.FCOS.NORM_REG_TARGETS" not in guessed.certain


# ----------------------------------------------------------------------------------------------- what cannot be written
@pytest.mark.parametrize(
    "name, settings, words",
    [
        ("torchvision", {}, "NORM_REG_TARGETS"),
        ("torchvision", dict(foreign.TORCHVISION, **{"MODEL.FCOS.LOCATION_OFFSET": 0.5}), "LOCATION_OFFSET 0.5"),
        ("torchvision", dict(foreign.TORCHVISION, **foreign.DEFORMABLE), "offset"),
        ("detectron2", {}, "CENTERNESS_ON_REG"),
        ("detectron2", dict(IMPROVED, **{"MODEL.FCOS.USE_DCN_IN_TOWER": True}), "cls_tower"),
        ("mmdet", foreign.ATSS, "FCOS_ON"),
        ("mmdet-atss", foreign.ATSS, "anchors"),
    ],
)
def test_models_that_a_format_cannot_express_are_refused(name, settings, words):
    cfg, model = foreign.detector(settings, filled=False)
    with pytest.raises(ValueError, match=words):
        FORMATS[name].write(foreign.same_scales(model.state_dict()), cfg)


def test_biases_that_mmdetection_lacks_are_refused():
    cfg, model = foreign.detector(foreign.ATSS)
    state = {k: v for k, v in model.state_dict().items() if "cell_anchors" not in k}
    with pytest.raises(ValueError, match="biases before the norms"):
        FORMATS["mmdet-atss"].write(state, cfg)


def test_without_a_config_the_notes_say_what_is_taken_for_granted():
    _, model = foreign.detector(filled=False)
    _, notes = FORMATS["torchvision"].write(foreign.same_scales(model.state_dict()))
    assert "MODEL.FCOS.NORM_REG_TARGETS True" in notes[0] and "num_classes=11" in notes[1]


@pytest.mark.parametrize(
    "value, wanted, same",
    [
        ([102.9801, 115.9465, 122.7717], [103.53, 116.28, 123.675], True),
        ([102.9801, 115.9465, 122.7717], [123.675, 116.28, 103.53], False),
        ((0.485, 0.456, 0.406), [0.485, 0.456, 0.406], True),
        ([1.0, 1.0], [1.0], False),
        (True, True, True),
        (1, 1.0, True),
        (None, 0.5, False),
    ],
)
def test_same_value(value, wanted, same):
    assert same_value(value, wanted) is same


@pytest.mark.parametrize("settings", [{}, foreign.DEFORMABLE, foreign.ATSS, dict(IMPROVED, **{
    "MODEL.RESNETS.NUM_GROUPS": 4, "MODEL.RESNETS.WIDTH_PER_GROUP": 2, "MODEL.FCOS.USE_DCN_IN_TOWER": True,
    "MODEL.BACKBONE.CONV_BODY": "R-101-FPN-RETINANET", "MODEL.RETINANET.USE_C5": True})])  # fmt: skip
def test_a_detector_describes_its_config(settings):
    cfg, model = foreign.detector(settings, filled=False)
    described = describe(model.state_dict())
    rebuilt = foreign.make_config(described)
    for key in described:
        node, mine = rebuilt, cfg
        for part in key.split("."):
            node, mine = node[part], mine[part]
        assert node == mine, key
