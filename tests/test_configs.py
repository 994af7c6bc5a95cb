"""Every yaml file of configs/: its values are the recorded ones, and it builds, trains and detects."""
import glob
import gzip
import json
import os

import pytest
import torch
import yaml

from fcos_core.config import load_config
from fcos_core.config.heads import HEADS, chosen_head
from fcos_core.modeling.detector import build_detection_model
from fcos_core.solver import make_optimizer
from fcos_core.structures.bounding_box import BoxList

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "configs")
PATHS = glob.glob(os.path.join(ROOT, "**", "*.yaml"), recursive=True)
FILES = sorted(os.path.relpath(path, ROOT).replace(os.sep, "/") for path in PATHS)

with gzip.open(os.path.join(os.path.dirname(__file__), "golden", "state_dicts.json.gz"), "rt") as stream:
    RECORDED = json.load(stream)


with gzip.open(os.path.join(os.path.dirname(__file__), "golden", "configs.json.gz"), "rt") as stream:
    VALUES = json.load(stream)

LOSSES = {
    "ATSS": ("cls", "reg", "centerness"),
    "FCOS": ("cls", "reg", "centerness"),
    "GFL": ("cls", "reg", "dfl"),
    "RETINANET": ("retina_cls", "retina_reg"),
    "TOOD": ("cls", "reg"),
}


def recorded(name):
    """[name, shape, kind] of the parameters of a configuration, or None."""
    models = RECORDED["models"]
    for key in (name, name + " MODEL.FCOS_ON False"):
        if key in models:
            return recorded(models[key]) if isinstance(models[key], str) else models[key]
    return None


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            for leaf in leaves(value, prefix + key + "."):
                yield leaf
        else:
            yield prefix + key, plain(value)


def plain(value):
    """Tuples as lists, as the record has them."""
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def test_the_files_of_the_predecessors_are_there_with_their_values():
    ours = {name for name in FILES if name.split("/")[0] in ("fcos", "atss", "retinanet")}
    assert ours == set(VALUES["files"])
    for name in ours:
        with open(os.path.join(ROOT, name), encoding="utf-8") as f:
            assert dict(leaves(yaml.safe_load(f))) == VALUES["files"][name], name


def test_the_keys_of_the_predecessors_are_there_with_their_defaults():
    ours = dict(leaves(load_config()[0]))
    assert {key: ours.get(key, "missing") for key in VALUES["defaults"]} == VALUES["defaults"]


@pytest.mark.parametrize("name", FILES)
def test_builds_with_the_recorded_parameters_trains_and_detects(name):
    cfg, explicit = load_config(os.path.join(ROOT, name))
    needs_library_of(cfg)
    head = name.split("/")[0].upper()
    head = head if head in HEADS else "FCOS"
    assert chosen_head(cfg) == head and "MODEL.{}_ON".format(head) in explicit
    model = build_detection_model(cfg)
    if recorded(name):
        trainable = dict(model.named_parameters())
        mine = [
            [key, list(value.shape), "b" if key not in trainable else "p" if trainable[key].requires_grad else "f"]
            for key, value in model.state_dict().items()
        ]
        assert mine == recorded(name)
    train_and_detect(cfg, model)


def needs_library_of(cfg):
    """Skip without the library that the body comes from; nothing is downloaded."""
    library = cfg.MODEL.BACKBONE.CONV_BODY.split("/")[0]
    pytest.importorskip({"timm": "timm", "torchvision": "torchvision.models.feature_extraction"}.get(library, "torch"))
    cfg.MODEL.BACKBONE.PRETRAINED = False


def train_and_detect(cfg, model):
    """One step and one batch of detections, on images of 64 x 64."""
    for key, value in model.state_dict().items():
        if key.endswith("bn3.weight"):
            value.fill_(0.1)  # constant statistics do not tame a body that was not trained
    images = torch.randn(2, 3, 64, 64)
    target = BoxList([[10, 12, 50, 40], [30, 5, 60, 60]], (64, 64))
    target.add_field("labels", torch.tensor([1, 2]))
    empty = BoxList([], (64, 64))
    empty.add_field("labels", torch.zeros(0, dtype=torch.int64))
    optimizer = make_optimizer(cfg, model)
    losses = model(images, [target, empty])
    total = sum(losses.values())
    total.backward()
    optimizer.step()
    assert torch.isfinite(total) and total > 0
    assert sorted(losses) == sorted("loss_" + name for name in LOSSES[chosen_head(cfg)])
    with torch.no_grad():
        detections = model.eval()(images)
    assert len(detections) == 2
    for found in detections:
        assert torch.isfinite(found.bbox).all() and len(found) <= 100 and found.size == (64, 64)


def test_values_that_the_published_results_depend_on():
    cfg, _ = load_config(os.path.join(ROOT, "fcos/fcos_imprv_R_50_FPN_1x.yaml"))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == (0.01, (60000, 80000), 90000)
    assert cfg.SOLVER.WARMUP_METHOD == "constant" and cfg.SOLVER.WEIGHT_DECAY == 0.0001
    fcos = cfg.MODEL.FCOS
    assert (fcos.NORM_REG_TARGETS, fcos.CENTERNESS_ON_REG, fcos.CENTER_SAMPLING_RADIUS, fcos.IOU_LOSS_TYPE) == (
        True,
        True,
        1.5,
        "giou",
    )
    assert not cfg.MODEL.RETINANET.USE_C5 and cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS == 256
