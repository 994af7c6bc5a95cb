"""Every form in which the older packages and Caffe2 wrote weights, made by the recipe and loaded by MODEL.WEIGHT.

`pytest -s tests/utils/test_checkpoint_names.py` prints how many tensors of each form found their place.
"""
import gzip
import json
import os
import pickle
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch

from fcos_core.config import load_config
from fcos_core.modeling.detector import build_detection_model
from fcos_core.utils import model_zoo
from fcos_core.utils.checkpoint import DetectronCheckpointer, read_checkpoint
from fcos_core.utils.model_serialization import match_by_suffix
from fcos_core.utils.weights_formats import FORMATS
from tests.golden import recipe
from tests.utils import foreign

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
with open(os.path.join(recipe.HERE, "c2_names.json")) as stream:
    CAFFE2 = json.load(stream)
with gzip.open(os.path.join(recipe.HERE, "mmdet_names.json.gz"), "rt") as stream:
    MMDET = json.load(stream)


@pytest.fixture(scope="module")
def table():
    """Rows (form, report, total), printed when the module is through."""
    rows = []
    yield rows
    print("\n| form | tensors of the model that matched | of the file without a place |\n|---|---|---|")
    for form, report, total in rows:
        print("| {} | {} / {} | {} |".format(form, len(report.matched), total, len(report.unused)))


@pytest.fixture(scope="module")
def small():
    cfg, model = foreign.detector({"MODEL.FCOS.NUM_CONVS": 4})
    return cfg, OrderedDict(model.state_dict())


def new_run(cfg, **arguments):
    """A checkpointer with a model that has its initial values."""
    return DetectronCheckpointer(cfg, build_detection_model(cfg), **arguments)


def assert_filled(run, expected):
    state = run.model.state_dict()
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []


# ------------------------------------------------------------------------------------------------- files of torch.save
def prefixed(state):
    return OrderedDict(("module." + name, value) for name, value in state.items())


def nested(state):
    """Two wrappers, as of DistributedDataParallel inside and outside."""
    return OrderedDict(("module." + name.replace(".head.", ".module.head."), value) for name, value in state.items())


def shortened(state):
    return OrderedDict((name.replace("backbone.", "").replace("rpn.", ""), value) for name, value in state.items())


def solver_state(state):
    weights = [torch.nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.SGD(weights, 0.01, momentum=0.9)
    weights[0].sum().backward()
    optimizer.step()
    scheduler = {"milestones": (60000, 80000), "gamma": 0.1, "base_lrs": [0.01], "last_epoch": 90000}
    return {"model": state, "optimizer": optimizer.state_dict(), "scheduler": scheduler, "iteration": 90000}


FORMS = {
    "state dict": lambda state: state,
    "state dict, module.": prefixed,
    "state dict, module. twice": nested,
    "suffixes of the names": shortened,
    "model": lambda state: {"model": state},
    "model, optimizer, scheduler, iteration": solver_state,
    "the same, module.": lambda state: solver_state(prefixed(state)),
}


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_files_of_torch(small, tmp_path, table, form, zip_format):
    cfg, state = small
    path = str(tmp_path / "weights.pth")
    torch.save(FORMS[form](state), path, _use_new_zipfile_serialization=zip_format)
    run = new_run(cfg)
    assert run.load(path, whole=True) == {}
    assert_filled(run, state)
    assert not run.report.missing and not run.report.unused
    if zip_format:
        table.append((".pth: " + form, run.report, len(state)))


def test_safetensors(small, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    cfg, state = small
    save_file(dict(state), str(tmp_path / "weights.safetensors"))
    run = new_run(cfg)
    run.load(str(tmp_path / "weights.safetensors"), whole=True)
    assert_filled(run, state)


def test_safetensors_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        read_checkpoint(str(tmp_path / "weights.safetensors"))


def test_last_checkpoint_goes_before_the_weights(small, tmp_path):
    cfg, state = small
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save(solver_state(prefixed(state)), str(tmp_path / "model_0090000.pth"))
    torch.save({"model": other}, str(tmp_path / "weights.pth"))
    with open(str(tmp_path / "last_checkpoint"), "w") as stream:
        stream.write(str(tmp_path / "model_0090000.pth"))  # without an end of line, as the older packages wrote it
    run = new_run(cfg, save_dir=str(tmp_path))
    assert run.load(str(tmp_path / "weights.pth"))["iteration"] == 90000
    assert_filled(run, state)


def test_one_tensor_may_feed_several(small, tmp_path):
    """Legacy: a plain suffix counts, without a dot before it, and for all names that it fits."""
    cfg, state = small
    state = OrderedDict((name, value) for name, value in state.items() if not name.endswith(".scale"))
    torch.save(dict(state, cale=torch.tensor([3.0])), str(tmp_path / "weights.pth"))
    run = new_run(cfg)
    run.load(str(tmp_path / "weights.pth"), whole=True)
    assert [scale.scale.item() for scale in run.model.rpn.head.scales] == [3.0] * 5


@pytest.mark.parametrize("settings", [foreign.ATSS, {"MODEL.RETINANET_ON": True, "MODEL.FCOS_ON": False}])
def test_anchors_come_with_the_weights(tmp_path, settings):
    cfg, model = foreign.detector(settings)
    state = {name: value + 1 if "cell_anchors" in name else value for name, value in model.state_dict().items()}
    torch.save(prefixed(state), str(tmp_path / "weights.pth"))
    run = new_run(cfg)
    run.load(str(tmp_path / "weights.pth"), whole=True)
    assert_filled(run, state)
    without = {name: value for name, value in state.items() if "cell_anchors" not in name}
    torch.save(without, str(tmp_path / "weights.pth"))
    run = new_run(cfg)
    run.load(str(tmp_path / "weights.pth"), whole=True)  # the model knows its own
    assert all("cell_anchors" in name for name in run.report.missing) and len(run.report.missing) == 5


# --------------------------------------------------------------------------------------------------------------- Caffe2
def write_caffe2(path, names, model, key="blobs"):
    """A pickle with the blobs `names`, pairs (blob, our name), filled by the recipe; returns {our name: tensor}."""
    own = model.state_dict()
    plain = {name.replace("conv2.conv.", "conv2."): name for name in own}
    matched = match_by_suffix(plain, [name for _, name in names])
    shapes = {loaded: own[plain[name]].shape for name, loaded in matched.items()}
    blobs = {blob: recipe.weight("caffe2." + name, shapes.get(name, (3,))) for blob, name in names}
    expected = {plain[name]: torch.from_numpy(blobs[blob]) for blob, loaded in names for name in matched
                if matched[name] == loaded}  # fmt: skip
    blobs.update({blob + "_momentum": np.zeros(3, np.float32) for blob, _ in names[:5]})
    blobs["weight_order"] = "text of Python 2: \xe9".encode("latin1").decode("latin1")
    with open(path, "wb") as stream:
        pickle.dump({key: blobs, "cfg": "a yaml text"} if key else blobs, stream, protocol=2)
    return expected


def resnet_blobs(blocks, norm="bn", grouped=False):
    """Names of the blobs of a ResNet of Caffe2, and of our tensors, spelled out."""
    stem = ("res_conv1_bn" if norm == "bn" else "conv1_gn", "bn1")
    pairs = [("conv1_w", "conv1.weight"), (stem[0] + "_s", "bn1.weight"), (stem[0] + "_b", "bn1.bias")]
    pairs += [("pred_w", "fc1000.weight"), ("pred_b", "fc1000.bias")] if grouped else [
        ("fc1000_w", "fc1000.weight"), ("fc1000_b", "fc1000.bias"), ("conv1_b", "conv1.bias")]  # fmt: skip
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            branches = [("1", "downsample.0", "downsample.1")] * (block == 0)
            branches += [("2a", "conv1", "bn1"), ("2b", "conv2", "bn2"), ("2c", "conv3", "bn3")]
            for branch, conv, bn in branches:
                blob = "res{}_{}_branch{}".format(stage + 1, block, branch)
                ours = "layer{}.{}.".format(stage, block)
                pairs += [(blob + "_w", ours + conv + ".weight"), (blob + "_b", ours + conv + ".bias")]
                pairs += [("{}_{}_{}".format(blob, norm, e), "{}{}.{}".format(ours, bn, p)) for e, p in (
                    ("s", "weight"), ("b", "bias"))]  # fmt: skip
    return pairs


BOTTLENECKS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}
GROUP_NORM = {
    "MODEL.RESNETS.TRANS_FUNC": "BottleneckWithGN",
    "MODEL.RESNETS.STEM_FUNC": "StemWithGN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.GROUP_NORM.NUM_GROUPS": 4,
}
RESNEXT = {
    "MODEL.BACKBONE.CONV_BODY": "R-101-FPN-RETINANET",
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 2,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}
# title -> (settings of the small model, blobs, tensors of the body that they fill)
CAFFE2_BODIES = {
    "MSRA R-50": ({}, CAFFE2["body"], 159),
    "MSRA R-101": ({"MODEL.BACKBONE.CONV_BODY": "R-101-FPN-RETINANET"}, resnet_blobs(BOTTLENECKS["101"]), 312),
    "R-50-GN": (GROUP_NORM, resnet_blobs(BOTTLENECKS["50"], "gn"), 159),
    "X-101": (RESNEXT, resnet_blobs(BOTTLENECKS["101"], grouped=True), 312),
    "MSRA R-50, deformable": (foreign.DEFORMABLE, CAFFE2["body"], 159),
}


def test_spelled_out_blobs_are_the_recorded_ones():
    assert sorted(resnet_blobs(BOTTLENECKS["50"])) == sorted(tuple(pair) for pair in CAFFE2["body"])
    group_norm = set(resnet_blobs(BOTTLENECKS["50"], "gn"))
    assert {tuple(pair) for pair in CAFFE2["group_norm"] if "res" in pair[0] or "conv1_gn" in pair[0]} <= group_norm


@pytest.mark.parametrize("key", ["blobs", None])
@pytest.mark.parametrize("title", sorted(CAFFE2_BODIES))
def test_caffe2_bodies(tmp_path, table, caplog, title, key):
    settings, names, count = CAFFE2_BODIES[title]
    cfg, model = foreign.detector(dict(settings, **{"MODEL.FCOS.NUM_CONVS": 4}), filled=False)
    expected = write_caffe2(str(tmp_path / "body.pkl"), [tuple(pair) for pair in names], model, key=key)
    run = DetectronCheckpointer(cfg, model)
    run.load(str(tmp_path / "body.pkl"))
    assert len(run.report.matched) == len(expected) == count
    assert_filled(run, expected)
    unused = {name.split(".")[-1] for name in run.report.unused}
    assert unused <= {"bias", "weight"} and all("bias" in n or "fc1000" in n for n in run.report.unused)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert not warnings  # stride and input are those of the config
    if key:
        table.append((".pkl: " + title, run.report, len(model.state_dict())))


def test_caffe2_body_with_the_stride_elsewhere_is_warned_about(tmp_path, caplog):
    cfg, model = foreign.detector({"MODEL.RESNETS.STRIDE_IN_1X1": False}, filled=False)
    write_caffe2(str(tmp_path / "body.pkl"), [tuple(pair) for pair in CAFFE2["body"]], model)
    DetectronCheckpointer(cfg, model).load(str(tmp_path / "body.pkl"))
    assert "MODEL.RESNETS.STRIDE_IN_1X1 True" in caplog.text


def test_a_deeper_body_is_refused(tmp_path):
    cfg, model = foreign.detector(filled=False)
    write_caffe2(str(tmp_path / "body.pkl"), resnet_blobs(BOTTLENECKS["101"]), model)
    with pytest.raises(ValueError, match=r"the model does not have: layer3\.\d+"):
        DetectronCheckpointer(cfg, model).load(str(tmp_path / "body.pkl"))


# ------------------------------------------------------------------------------------- catalog, addresses, MobileNetV2
def test_catalog_names_are_downloaded_once(tmp_path, monkeypatch):
    """The web is replaced by a folder; the file keeps the name that the older packages gave it."""
    cfg, model = foreign.detector(filled=False)
    asked = []

    def download(url, target, digest=None, progress=True):
        asked.append(url)
        write_caffe2(target, [tuple(pair) for pair in CAFFE2["body"]], model)

    monkeypatch.setattr(model_zoo, "download_url_to_file", download)
    monkeypatch.setenv("TORCH_MODEL_ZOO", str(tmp_path / "zoo"))
    for name in ("catalog://ImageNetPretrained/MSRA/R-50", "https://host/files/R-50.pkl"):
        run = DetectronCheckpointer(cfg, model)
        run.load(name)
        assert len(run.report.matched) == 159
    assert asked == ["https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl"]
    assert os.listdir(str(tmp_path / "zoo")) == ["R-50.pkl"]
    DetectronCheckpointer(cfg, model).load("https://host/download?id=7#MSRA-R-50.pkl")
    assert sorted(os.listdir(str(tmp_path / "zoo"))) == ["MSRA-R-50.pkl", "R-50.pkl"]


def test_mobilenet_classifier(tmp_path, table):
    cfg = foreign.config_of({"MODEL.BACKBONE.CONV_BODY": "MNV2-FPN-RETINANET"})
    model = recipe.fill(build_detection_model(cfg))
    body = "backbone.body."
    state = {name[len(body) :]: value for name, value in model.state_dict().items() if name.startswith(body)}
    more = {"features.18.0.weight": torch.ones(1280, 320, 1, 1), "classifier.1.weight": torch.ones(10, 1280)}
    torch.save(dict(state, **more), str(tmp_path / "mobilenet_v2.pth"))
    run = new_run(cfg)
    run.load(str(tmp_path / "mobilenet_v2.pth"))
    assert len(run.report.matched) == len(state) and sorted(run.report.unused) == sorted(more)
    table.append((".pth: MobileNetV2 classifier", run.report, len(model.state_dict())))


# -------------------------------------------------------------------------------------------- R-50 of other frameworks
IMPROVED = {"MODEL.FCOS.NORM_REG_TARGETS": True, "MODEL.FCOS.CENTERNESS_ON_REG": True, "MODEL.FCOS.NUM_CONVS": 4}
DETECTORS = {
    "torchvision": dict(IMPROVED, **foreign.TORCHVISION),
    "detectron2": IMPROVED,
    "adelaidet": IMPROVED,
    "mmdet": IMPROVED,
}


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_detectors_of_other_frameworks(tmp_path, table, name):
    """All tensors of an R-50 FCOS, with few channels."""
    cfg, model = foreign.detector(DETECTORS[name])
    state = foreign.same_scales(model.state_dict())
    written, _ = FORMATS[name].write(state, cfg)
    content = {"state_dict": written, "meta": {}} if name == "mmdet" else {"model": prefixed(written), "iteration": 1}
    torch.save(content, str(tmp_path / "weights.pth"))
    run = new_run(cfg)
    assert run.load(str(tmp_path / "weights.pth"), whole=True) == {}
    assert len(run.report.matched) == len(state) == 324 and not run.report.unused
    assert_filled(run, state)
    table.append((name + ": FCOS R-50 ({} tensors)".format(len(written)), run.report, len(state)))


def test_detector_of_detectron2_in_a_pickle(tmp_path):
    """Its model zoo has pickles of arrays under the key "model"."""
    cfg, model = foreign.detector(IMPROVED)
    state = foreign.same_scales(model.state_dict())
    written, _ = FORMATS["detectron2"].write(state, cfg)
    with open(str(tmp_path / "model_final.pkl"), "wb") as stream:
        pickle.dump({"model": {key: value.numpy() for key, value in written.items()}, "__author__": "them"}, stream)
    run = new_run(cfg)
    run.load(str(tmp_path / "model_final.pkl"), whole=True)
    assert_filled(run, state)


@pytest.fixture(scope="module")
def full():
    """The real FCOS R-50, with random weights."""
    cfg, _ = load_config(os.path.join(ROOT, "configs", "fcos", "fcos_R_50_FPN_1x.yaml"), ["MODEL.DEVICE", "cpu"])
    return cfg, build_detection_model(cfg)


def test_full_bodies_of_torchvision_and_timm(full, tmp_path, table):
    models = pytest.importorskip("torchvision.models")
    cfg, model = full
    body = models.resnet50().state_dict()
    torch.save(body, str(tmp_path / "resnet50.pth"))
    run = DetectronCheckpointer(cfg, model)
    run.load(str(tmp_path / "resnet50.pth"))
    assert len(run.report.matched) == 265 and not run.report.unused
    variance = model.backbone.body.layer2[0].bn1.running_var
    assert torch.equal(variance, (body["layer2.0.bn1.running_var"].double() + 1e-5).float())
    table.append(("torchvision, timm: ResNet-50 ({} tensors)".format(len(body)), run.report, len(model.state_dict())))


def test_names_that_mmdetection_wrote(full, tmp_path, table, caplog):
    """Its FCOS has no biases before norms: eight of our tensors are zeros that no tensor of the file brings."""
    cfg, model = full
    state = {name: torch.ones(shape) for name, shape in MMDET["mmdet_fcos_r50"]}
    torch.save({"state_dict": state, "meta": {"epoch": 12}}, str(tmp_path / "epoch_12.pth"))
    run = DetectronCheckpointer(cfg, model)
    with caplog.at_level("INFO"):
        run.load(str(tmp_path / "epoch_12.pth"), whole=True)
    assert "8 of which follow from the format" in caplog.text
    assert not run.report.unused and len(run.report.matched) == len(model.state_dict())
    zeros = [name for name, value in model.state_dict().items() if bool((value == 0).all())]
    assert zeros == ["rpn.head.{}_tower.{}.bias".format(t, i) for t in ("cls", "bbox") for i in (0, 3, 6, 9)]
    table.append(("mmdetection 3.3: FCOS R-50 ({} tensors)".format(len(state)), run.report, len(model.state_dict())))


def test_atss_of_mmdetection(tmp_path, table):
    """The anchors come from the format; P7 without ReLU is in the config."""
    cfg, model = foreign.detector(dict(foreign.ATSS, **{"MODEL.FPN.RELU_BEFORE_P7": False, "MODEL.ATSS.NUM_CONVS": 4}))
    shapes = model.state_dict()
    names = {FORMATS["mmdet-atss"]._renaming.to_theirs(name): name for name in shapes if "cell_anchors" not in name}
    known = {name: names[name] for name, _ in MMDET["mmdet_atss_r50"] if name in names}
    counters = {name: torch.tensor(0) for name, shape in MMDET["mmdet_atss_r50"] if not shape and name not in known}
    state = dict({theirs: torch.full_like(shapes[ours], 0.5) for theirs, ours in known.items()}, **counters)
    assert len(state) == len(MMDET["mmdet_atss_r50"])
    torch.save({"state_dict": state, "meta": {}}, str(tmp_path / "epoch_12.pth"))
    run = new_run(cfg)
    run.load(str(tmp_path / "epoch_12.pth"), whole=True)
    assert len(run.report.matched) == len(shapes) == 329 and not run.report.unused
    anchors = [cell.tolist() for cell in run.model.rpn.anchor_generator.cell_anchors]
    assert anchors[0] == [[-31.5, -31.5, 31.5, 31.5]] and anchors[4] == [[-511.5, -511.5, 511.5, 511.5]]
    table.append(("mmdetection 3.3: ATSS R-50 ({} tensors)".format(len(state)), run.report, len(shapes)))
