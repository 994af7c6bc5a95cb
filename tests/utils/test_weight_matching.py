"""Which weights a detector takes, which it refuses, and what is said about it."""
import logging
from collections import OrderedDict

import pytest
import torch

from fcos_core.utils.checkpoint import DetectronCheckpointer, read_checkpoint
from fcos_core.utils.weight_matching import check_config, fit_weights, summarize
from fcos_core.utils.weights_formats import FORMATS, interpret
from tests.utils import foreign


@pytest.fixture(scope="module")
def source():
    """(cfg, state dict) of a small FCOS with noise for weights."""
    cfg, model = foreign.detector()
    return cfg, OrderedDict(model.state_dict())


def load(state, settings=(), cfg_changes=(), tmp_path=None, **arguments):
    """Load a state dict through DetectronCheckpointer; returns (model, report, cfg)."""
    cfg, model = foreign.detector(settings, filled=False)
    cfg.merge_from_list(list(cfg_changes))
    path = str(tmp_path / "weights.pth")
    torch.save(state if "model" in state else {"model": state}, path)
    run = DetectronCheckpointer(cfg, model)
    run.load(path, **arguments)
    return model, run.report, cfg


def parts(state, *words):
    return OrderedDict((name, value) for name, value in state.items() if any(word in name for word in words))


def without(state, *words):
    return OrderedDict((name, value) for name, value in state.items() if not any(word in name for word in words))


def test_a_whole_detector(source, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        model, report, _ = load(source[1], tmp_path=tmp_path, whole=True)
    assert len(report.matched) == len(source[1]) and not (report.missing or report.unused or report.mismatched)
    assert all(torch.equal(value, source[1][name]) for name, value in model.state_dict().items())
    assert "loaded {0} of the model's {0} tensors from ".format(len(source[1])) in caplog.text


@pytest.mark.parametrize("words", [("body",), ("body", "fpn_"), ("body", "fpn")])
def test_the_first_parts_of_a_detector_are_enough_to_train(source, tmp_path, caplog, words):
    with caplog.at_level(logging.INFO):
        model, report, _ = load(parts(source[1], *words), tmp_path=tmp_path)
    assert "rpn.* (" in caplog.text and "left as they were" in caplog.text
    assert sorted(report.missing) == sorted(without(source[1], *words))
    assert torch.equal(model.backbone.body.stem.conv1.weight, source[1]["backbone.body.stem.conv1.weight"])


@pytest.mark.parametrize("words", [("body",), ("body", "fpn_"), ("body", "fpn")])
def test_but_not_to_test(source, tmp_path, words):
    with pytest.raises(ValueError, match=r"rpn\.head\.|backbone\.fpn\."):
        load(parts(source[1], *words), tmp_path=tmp_path, whole=True)


@pytest.mark.parametrize(
    "left_out, named",
    [
        ("layer4.2.conv3", "layer4.2.conv3.weight"),
        ("fpn_layer3.bias", "backbone.fpn.fpn_layer3.bias"),
        ("backbone.fpn.", "fpn_inner2"),  # the head is there, so the pyramid must be
        ("backbone.body", "stem.conv1"),
        ("centerness", "rpn.head.centerness.weight"),
        ("scales", "rpn.head.scales.0.scale"),
    ],
)
def test_gaps_are_errors_unless_allowed(source, tmp_path, caplog, left_out, named):
    state = without(source[1], left_out)
    with pytest.raises(ValueError, match="ALLOW_WEIGHT_MISMATCH") as error:
        load(state, tmp_path=tmp_path)
    assert named in str(error.value)
    allowed = ["MODEL.ALLOW_WEIGHT_MISMATCH", True]
    model, report, _ = load(state, cfg_changes=allowed, tmp_path=tmp_path)
    assert len(report.matched) == len(state) and named in caplog.text and "Ignored" in caplog.text


def test_a_refused_file_leaves_the_model_as_it_was(source, tmp_path):
    cfg, model = foreign.detector(filled=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(without(source[1], "scales"), str(tmp_path / "w.pth"))
    with pytest.raises(ValueError):
        DetectronCheckpointer(cfg, model).load(str(tmp_path / "w.pth"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("extra", ["rpn.head.cls_tower.12.weight", "body.layer3.6.conv1.weight", "roi_heads.x"])
def test_tensors_without_a_place_are_errors(source, tmp_path, extra):
    with pytest.raises(ValueError, match="the model does not have: " + extra):
        load(dict(source[1], **{extra: torch.ones(1)}), tmp_path=tmp_path)


@pytest.mark.parametrize("extra", ["fc.weight", "module.fc1000.bias", "classifier.1.weight", "x.num_batches_tracked"])
def test_classifiers_and_counters_are_not(source, tmp_path, caplog, extra):
    with caplog.at_level(logging.INFO):
        _, report, _ = load(dict(source[1], **{extra: torch.ones(1)}), tmp_path=tmp_path)
    assert report.unused == [extra] and extra in caplog.text


def test_a_prefix_on_some_names_only_is_an_error(source, tmp_path):
    """Legacy: such a prefix is not removed, and these tensors were silently left out."""
    state = OrderedDict(("module." + k if "rpn" in k else k, v) for k, v in source[1].items())
    with pytest.raises(ValueError, match=r"module\.rpn\.head"):
        load(state, tmp_path=tmp_path)


def test_another_number_of_classes_is_for_training(source, tmp_path, caplog):
    more = {"MODEL.FCOS.NUM_CLASSES": 21}
    model, report, _ = load(source[1], more, tmp_path=tmp_path, skip_mismatched=True)
    assert sorted(report.mismatched) == ["rpn.head.cls_logits.bias", "rpn.head.cls_logits.weight"]
    assert "([20] in the model, [10] in the file)" in caplog.text
    assert torch.equal(model.rpn.head.bbox_pred.weight, source[1]["rpn.head.bbox_pred.weight"])
    with pytest.raises(ValueError, match="of another shape"):
        load(source[1], more, tmp_path=tmp_path)


def test_other_shapes_are_errors_in_training_too(source, tmp_path):
    with pytest.raises(ValueError, match=r"backbone\.fpn\.top_blocks\.p6\.weight"):
        load(source[1], {"MODEL.RETINANET.USE_C5": True}, tmp_path=tmp_path, skip_mismatched=True)


def test_a_plain_body_in_a_deformable_model(source, tmp_path):
    """The convolution of the offsets is new; the weight of the 3x3 has another name only in Caffe2 files."""
    settings = dict(foreign.DEFORMABLE)
    state = OrderedDict()
    for name, value in parts(source[1], "body").items():
        inner = ("layer3" in name or "layer4" in name) and name.endswith("conv2.weight")
        state[name.replace("conv2.weight", "conv2.conv.weight") if inner else name] = value
    _, report, _ = load(state, settings, tmp_path=tmp_path)
    assert any(name.endswith("conv2.offset.weight") for name in report.missing)


def test_resuming_wants_everything(source, tmp_path):
    cfg, model = foreign.detector(filled=False)
    run = DetectronCheckpointer(cfg, model, save_dir=str(tmp_path), save_to_disk=True)
    run.save("model_0000001", iteration=1)
    checkpoint = read_checkpoint(str(tmp_path / "model_0000001.pth"))
    checkpoint["model"] = without(checkpoint["model"], "rpn.")
    torch.save(checkpoint, str(tmp_path / "model_0000001.pth"))
    with pytest.raises(ValueError, match=r"rpn\.head"):
        DetectronCheckpointer(cfg, model, save_dir=str(tmp_path)).load()


# ----------------------------------------------------------------------------------------------------------- the config
def from_torchvision():
    cfg, model = foreign.detector(foreign.TORCHVISION)
    return FORMATS["torchvision"].write(foreign.same_scales(model.state_dict()), cfg)[0]


def test_a_detector_with_a_config_that_does_not_fit_is_refused(tmp_path):
    settings = dict(foreign.TORCHVISION, **{"MODEL.FCOS.NORM_REG_TARGETS": False, "MODEL.RESNETS.STRIDE_IN_1X1": True})
    with pytest.raises(ValueError, match="check_config") as error:
        load(from_torchvision(), settings, tmp_path=tmp_path)
    wanted = "set MODEL.FCOS.NORM_REG_TARGETS True MODEL.RESNETS.STRIDE_IN_1X1 False"
    assert wanted in str(error.value) and "LOCATION_OFFSET" not in str(error.value)
    load(from_torchvision(), settings, ["MODEL.ALLOW_WEIGHT_MISMATCH", True], tmp_path=tmp_path)


def test_its_input_is_only_warned_about(tmp_path, caplog):
    settings = {key: value for key, value in foreign.TORCHVISION.items() if not key.startswith("INPUT.")}
    load(from_torchvision(), settings, tmp_path=tmp_path, whole=True)
    assert "INPUT.TO_BGR255 False" in caplog.text and "[0.485, 0.456, 0.406]" in caplog.text
    caplog.clear()
    load(from_torchvision(), foreign.TORCHVISION, tmp_path=tmp_path, whole=True)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_body_with_a_config_that_does_not_fit_is_warned_about(tmp_path, caplog):
    body, _ = FORMATS["torchvision-resnet"].write(foreign.detector()[1].state_dict())
    body["fc.weight"] = torch.ones(1000, 8)
    _, report, _ = load(body, tmp_path=tmp_path)
    warnings = " ".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert "MODEL.RESNETS.STRIDE_IN_1X1 False" in warnings and "INPUT.TO_BGR255 False" in warnings
    assert len(report.matched) == 265 and "fc.weight" not in report.unused
    caplog.clear()
    load(body, foreign.TORCHVISION, tmp_path=tmp_path)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_checkpoint_that_carries_another_config_is_warned_about(source, tmp_path, caplog):
    trained = foreign.config_of({"MODEL.FCOS.CENTERNESS_ON_REG": True, "MODEL.RESNETS.STRIDE_IN_1X1": False})
    load({"model": source[1], "config": trained.dump()}, tmp_path=tmp_path)
    assert "MODEL.FCOS.CENTERNESS_ON_REG True" in caplog.text and "STRIDE_IN_1X1 False" in caplog.text
    assert "NORM_REG_TARGETS" not in caplog.text


@pytest.mark.parametrize("config", ["model = dict(type='FCOS')", "a: [b", "- 1", {"MODEL": {}}])
def test_a_config_of_somebody_else_says_nothing(source, config):
    assert interpret({"model": source[1], "config": config}).assumed == {}


def test_a_body_under_the_names_of_torchvision_stays_as_it_is():
    """Models may contain a ResNet of torchvision: names and epsilon are its own then."""
    body, _ = FORMATS["torchvision-resnet"].write(foreign.detector()[1].state_dict())
    model = torch.nn.Module()
    model.body = torch.nn.Module()
    model.body.conv1 = torch.nn.Conv2d(3, 8, 7, bias=False)
    model.body.bn1 = torch.nn.BatchNorm2d(8)
    weights = interpret({"model": body}, model_state=model.state_dict())
    assert weights.format == "fcos_core" and weights.state["bn1.running_var"] is body["bn1.running_var"]


def test_check_config_without_complaints():
    weights = interpret({"model": from_torchvision()})
    check_config(foreign.config_of(foreign.TORCHVISION), weights)


# --------------------------------------------------------------------------------------------------------- what is said
def test_names_are_summarized_without_leaving_any_out():
    names = ["head.a.weight", "head.a.bias", "body.1.norm.var", "body.2.norm.var", "body.1.x"]
    text = summarize(names, ["body.1.norm.weight", "body.2.norm.weight", "body.1.y"])
    assert text == "head.* (2), body.#.norm.var (2), body.1.x"
    assert summarize(["fc.weight", "conv1.bias", "conv2.bias"]) == "fc.weight, conv#.bias (2)"


def test_no_name_fits():
    weights = interpret({"model": {"elsewhere": torch.ones(1)}})
    with pytest.raises(ValueError, match="elsewhere"):
        fit_weights(torch.nn.Linear(2, 2), weights)
