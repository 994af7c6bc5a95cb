"""Command line of convert_checkpoint.py: files from elsewhere become ours, with their config, and go back."""
import importlib.util
import os

import pytest
import torch

from fcos_core.config import load_config
from fcos_core.engine.restore import load_weights, restore_run
from fcos_core.modeling.detector import build_detection_model
from fcos_core.utils.weights_formats import FAMILIES, FORMATS
from tests.utils import foreign

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
IMPROVED = {"MODEL.FCOS.NORM_REG_TARGETS": True, "MODEL.FCOS.CENTERNESS_ON_REG": True}


def tool():
    path = os.path.join(ROOT, "tools", "convert_checkpoint.py")
    spec = importlib.util.spec_from_file_location("convert_checkpoint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments):
    return tool().main([str(argument) for argument in arguments])


def test_the_tool_knows_the_formats_of_the_package():
    assert tool().FAMILIES == tuple(FAMILIES)


def test_from_torchvision_and_back(tmp_path, capsys):
    cfg, model = foreign.detector(foreign.TORCHVISION)
    ours = foreign.same_scales(model.state_dict())
    theirs, _ = FORMATS["torchvision"].write(ours, cfg)
    torch.save(theirs, str(tmp_path / "theirs.pth"))
    assert run(tmp_path / "theirs.pth", tmp_path / "ours.pth") == 0
    printed = capsys.readouterr().out
    assert "MODEL.FCOS.LOCATION_OFFSET 0.0" in printed and "MODEL.RESNETS.STRIDE_IN_1X1 False" in printed

    # with the yaml file, with the config inside, and with neither: the same model
    written, explicit = load_config(str(tmp_path / "ours.yaml"))
    assert written.MODEL.FCOS.NUM_CLASSES == 11 and "MODEL.RESNETS.WIDTH_PER_GROUP" in explicit
    restored = restore_run("", ["MODEL.DEVICE", "cpu"], str(tmp_path / "ours.pth"))
    for config in (written, restored.cfg):
        rebuilt = build_detection_model(config)
        load_weights(config, rebuilt, str(tmp_path / "ours.pth"))
        assert all(torch.equal(value, ours[name]) for name, value in rebuilt.state_dict().items())
    load_weights(written, rebuilt, str(tmp_path / "theirs.pth"))
    assert all(torch.equal(value, ours[name]) for name, value in rebuilt.state_dict().items())
    with pytest.raises(ValueError, match="convert_checkpoint"):
        restore_run("", [], str(tmp_path / "theirs.pth"))

    assert run(tmp_path / "ours.pth", tmp_path / "back.pth", "--to", "torchvision") == 0
    back = torch.load(str(tmp_path / "back.pth"))
    assert sorted(back) == sorted(theirs) and all(torch.equal(back[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("target", ["detectron2", "adelaidet", "mmdet"])
def test_from_ours_by_config_file(tmp_path, capsys, target):
    cfg, model = foreign.detector(IMPROVED)
    state = foreign.same_scales(model.state_dict())
    torch.save({"model": {"module." + name: value for name, value in state.items()}}, str(tmp_path / "ours.pth"))
    (tmp_path / "model.yaml").write_text(cfg.dump())
    arguments = [tmp_path / "ours.pth", tmp_path / "theirs.pth", "--to", target]
    assert run(*(arguments + ["--config-file", tmp_path / "model.yaml"])) == 0
    assert "Note: Its" in capsys.readouterr().out and os.listdir(str(tmp_path)).count("theirs.yaml") == 0
    assert run(tmp_path / "theirs.pth", tmp_path / "back.pth", "--from", target) == 0
    back = torch.load(str(tmp_path / "back.pth"))["model"]
    assert sorted(back) == sorted(state) and all(torch.equal(back[name], state[name]) for name in state)
    # a model of the other kind is refused by the config that says so
    words = ["--config-file", tmp_path / "model.yaml", "MODEL.FCOS.NORM_REG_TARGETS", "False"]
    assert run(*(arguments + words)) == (0 if target == "mmdet" else 1)


def test_between_two_others(tmp_path):
    cfg, model = foreign.detector(IMPROVED)
    state = foreign.same_scales(model.state_dict())
    theirs, _ = FORMATS["mmdet"].write(state, cfg)
    text = "style='caffe', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False, norm_on_bbox=True, "
    meta = {"config": text + "centerness_on_reg=True, relu_before_extra_convs=True", "CLASSES": ("cat", "dog")}
    torch.save({"state_dict": theirs, "meta": meta}, str(tmp_path / "mmdet.pth"))
    assert run(tmp_path / "mmdet.pth", tmp_path / "adelaidet.pth", "--to", "adelaidet") == 0
    expected, _ = FORMATS["adelaidet"].write(state, cfg)
    written = torch.load(str(tmp_path / "adelaidet.pth"))["model"]
    assert sorted(written) == sorted(expected) and all(torch.equal(written[k], expected[k]) for k in expected)
    assert run(tmp_path / "mmdet.pth", tmp_path / "ours.pth") == 0
    assert torch.load(str(tmp_path / "ours.pth"))["categories"] == ["cat", "dog"]
    assert run(tmp_path / "mmdet.pth", tmp_path / "tv.pth", "--to", "torchvision") == 1  # its locations lie elsewhere


def test_bodies(tmp_path):
    _, model = foreign.detector()
    body, _ = FORMATS["torchvision-resnet"].write(model.state_dict())
    torch.save(dict(body, **{"fc.weight": torch.ones(10, 8)}), str(tmp_path / "resnet.pth"))
    assert run(tmp_path / "resnet.pth", tmp_path / "body.pth") == 0
    converted = torch.load(str(tmp_path / "body.pth"))
    assert list(converted) == ["model"] and len(converted["model"]) == 265
    assert "INPUT" in (tmp_path / "body.yaml").read_text()
    assert run(tmp_path / "resnet.pth", tmp_path / "trained.pth", "--train-batch-norm") == 0
    trained = torch.load(str(tmp_path / "trained.pth"))["model"]
    assert torch.equal(trained["stem.bn1.running_var"], body["bn1.running_var"])


@pytest.mark.parametrize("source", ["mmdet", "caffe2"])
def test_another_format_than_the_one_that_was_named(tmp_path, source, capsys):
    _, model = foreign.detector(filled=False)
    torch.save(model.state_dict(), str(tmp_path / "ours.pth"))
    assert run(tmp_path / "ours.pth", tmp_path / "x.pth", "--from", source) == 1
    assert not os.path.exists(str(tmp_path / "x.pth"))


def test_layers_that_this_package_lacks(tmp_path):
    cfg, model = foreign.detector(IMPROVED)
    theirs, _ = FORMATS["adelaidet"].write(model.state_dict(), cfg)
    theirs["proposal_generator.fcos_head.share_tower.0.weight"] = torch.ones(1)
    torch.save(theirs, str(tmp_path / "theirs.pth"))
    assert run(tmp_path / "theirs.pth", tmp_path / "x.pth") == 1
