"""Every yaml file of configs/: it loads, it builds, and its values are the recorded ones."""
import glob
import gzip
import json
import os

import pytest

from fcos_core.config import load_config
from fcos_core.modeling.detector import build_detection_model

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "configs")
PATHS = glob.glob(os.path.join(ROOT, "**", "*.yaml"), recursive=True)
FILES = sorted(os.path.relpath(path, ROOT).replace(os.sep, "/") for path in PATHS)

with gzip.open(os.path.join(os.path.dirname(__file__), "golden", "state_dicts.json.gz"), "rt") as stream:
    RECORDED = json.load(stream)


def recorded(name):
    entry = RECORDED["models"][name] if "models" in RECORDED else RECORDED[name]
    return recorded(entry) if isinstance(entry, str) else entry


def has_record(name):
    return name in RECORDED.get("models", RECORDED)


def test_the_names_of_the_predecessor_are_there():
    bodies = ["R_50_FPN_1x", "R_101_FPN_2x", "X_101_32x8d_FPN_2x", "X_101_64x4d_FPN_2x"]
    names = ["fcos/fcos_" + body for body in bodies] + ["fcos/fcos_imprv_" + body for body in bodies + ["R_101_FPN_1x"]]
    mobile = ["bn_bs16", "syncbn_bs32", "syncbn_bs32_c128", "syncbn_bs32_c128_ms", "syncbn_bs64_c128_ms"]
    names += ["fcos/fcos_{}_MNV2_FPN_1x".format(kind) for kind in mobile]
    names += ["fcos/fcos_imprv_dcnv2_" + body for body in ["R_50_FPN_1x", "R_101_FPN_1x", "R_101_FPN_2x"] + bodies[2:]]
    assert {name + ".yaml" for name in names} == {name for name in FILES if name.startswith("fcos/")}


@pytest.mark.parametrize("name", FILES)
def test_builds_with_the_recorded_parameters(name):
    cfg, explicit = load_config(os.path.join(ROOT, name))
    assert cfg.MODEL.FCOS_ON and "MODEL.FCOS_ON" in explicit
    model = build_detection_model(cfg)
    if has_record(name):
        trainable = dict(model.named_parameters())
        mine = [
            [key, list(value.shape), "b" if key not in trainable else "p" if trainable[key].requires_grad else "f"]
            for key, value in model.state_dict().items()
        ]
        assert mine == recorded(name)


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
