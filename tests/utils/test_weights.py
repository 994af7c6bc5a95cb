"""Names: suffix matching, Caffe2 blobs, downloads."""
import json
import logging
import os
import pickle

import numpy as np
import pytest
import torch

from fcos_core.config import load_config
from fcos_core.modeling.detector import build_detection_model
from fcos_core.utils.c2_model_loading import C2_FORMAT_LOADER, load_c2_format, rename_blob
from fcos_core.utils.model_serialization import (
    align_and_update_state_dicts,
    load_state_dict,
    match_by_suffix,
    strip_prefix_if_present,
)
from fcos_core.utils.model_zoo import cache_url, cached_filename

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
with open(os.path.join(ROOT, "tests", "golden", "c2_names.json")) as stream:
    NAMES = json.load(stream)


def test_the_longest_suffix_wins_and_may_serve_several():
    """Legacy: a plain string suffix, without a dot before it."""
    model = ["x.conv1.weight", "x.layer1.conv1.weight", "y.myconv1.weight", "z.bias"]
    loaded = ["conv1.weight", "layer1.conv1.weight"]
    assert match_by_suffix(model, loaded) == {
        "x.conv1.weight": "conv1.weight",
        "x.layer1.conv1.weight": "layer1.conv1.weight",
        "y.myconv1.weight": "conv1.weight",
    }


def test_prefix_goes_only_if_all_have_it():
    """Legacy: every occurrence goes."""
    assert list(strip_prefix_if_present({"module.a.module.b": 1, "module.c": 2}, "module.")) == ["a.b", "c"]
    mixed = {"module.a": 1, "b": 2}
    assert strip_prefix_if_present(mixed, "module.") is mixed
    assert strip_prefix_if_present({}, "module.") == {}


def test_align_reports():
    state = {"net.a": torch.zeros(1), "net.b": torch.zeros(1)}
    report = align_and_update_state_dicts(state, {"a": torch.ones(1), "other": torch.ones(1)})
    assert state["net.a"].item() == 1 and state["net.b"].item() == 0
    assert (report.matched, report.missing, report.unused) == ({"net.a": "a"}, ["net.b"], ["other"])


def test_load_logs_counts_and_bounded_names(caplog):
    model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(20)])
    with caplog.at_level(logging.INFO):
        load_state_dict(model, {"19.weight": torch.ones(2, 2), "stranger": torch.ones(1)})
    assert torch.equal(model[19].weight, torch.ones(2, 2))
    assert "loaded 1 of the model's 40 tensors" in caplog.text and "stranger" in caplog.text
    assert "0.bias" in caplog.text and "and 29 more" in caplog.text and "9.bias" not in caplog.text


def test_other_shapes_raise_or_are_skipped_by_name(caplog):
    loaded = {"weight": torch.ones(3, 2), "bias": torch.ones(2)}
    with pytest.raises(ValueError, match=r"weight \(\[2, 2\] in the model, \[3, 2\] in the file\)"):
        load_state_dict(torch.nn.Linear(2, 2), loaded)
    model = torch.nn.Linear(2, 2)
    weight = model.weight.detach().clone()
    report = load_state_dict(model, loaded, skip_mismatched=True)
    assert torch.equal(model.weight, weight) and torch.equal(model.bias, torch.ones(2))
    assert list(report.mismatched) == ["weight"] and "weight" in caplog.text


def test_a_file_of_another_model_is_refused():
    with pytest.raises(ValueError, match="elsewhere"):
        load_state_dict(torch.nn.Linear(2, 2), {"elsewhere": torch.ones(1)})


@pytest.mark.parametrize("part", ["body", "detector", "group_norm", "resnext"])
def test_caffe2_names_are_the_recorded_ones(part):
    assert [[blob, rename_blob(blob)] for blob, _ in NAMES[part]] == NAMES[part]


def write_caffe2_body(path):
    """A pickle as the MSRA R-50 one: all blobs, of the shapes of our model where it has them."""
    cfg, _ = load_config(os.path.join(ROOT, "configs", "fcos", "fcos_R_50_FPN_1x.yaml"))
    model = build_detection_model(cfg)
    names = match_by_suffix(model.state_dict(), [name for _, name in NAMES["body"]])
    shapes = {loaded: model.state_dict()[name].shape for name, loaded in names.items()}
    blobs = {blob: np.full(shapes.get(name, (1,)), 0.25, np.float32) for blob, name in NAMES["body"]}
    blobs.update({"conv1_w_momentum": np.zeros(1, np.float32), "weight_order": "a text"})
    with open(path, "wb") as stream:
        pickle.dump({"blobs": blobs}, stream, protocol=2)
    return cfg, model


def test_caffe2_body_fills_the_model(tmp_path):
    path = str(tmp_path / "R-50.pkl")
    cfg, model = write_caffe2_body(path)
    golden = NAMES["fcos_R_50_FPN_1x"]
    report = load_state_dict(model, load_c2_format(cfg, path)["model"])
    assert len(model.state_dict()) == golden["model_tensors"] and len(report.matched) == golden["matched"]
    assert {name: report.matched[name] for name in golden["pairs"]} == golden["pairs"]
    assert sorted(report.unused) == sorted(golden["loaded_unused"])
    assert torch.all(model.backbone.body.layer3[0].conv2.weight == 0.25)
    assert "R-152-FPN" in C2_FORMAT_LOADER


def test_caffe2_names_of_deformable_stages(tmp_path):
    path = str(tmp_path / "R-50.pkl")
    cfg, _ = write_caffe2_body(path)
    cfg.MODEL.RESNETS.STAGE_WITH_DCN = (False, True, True, True)
    names = set(load_c2_format(cfg, path)["model"])
    assert {"layer1.0.conv2.weight", "layer2.0.bn2.weight", "layer2.0.conv2.conv.weight"} <= names
    assert "layer4.1.conv2.conv.weight" in names and "layer4.1.conv2.weight" not in names


def test_download_once_under_the_old_names(tmp_path, monkeypatch):
    source = tmp_path / "there" / "weights.pth"
    source.parent.mkdir()
    source.write_bytes(b"content")
    monkeypatch.setenv("TORCH_MODEL_ZOO", str(tmp_path / "zoo"))
    cached = cache_url(source.as_uri(), progress=False)
    assert cached == str(tmp_path / "zoo" / "weights.pth")
    source.unlink()
    assert cache_url(source.as_uri(), progress=False) == cached
    with open(cached, "rb") as stream:
        assert stream.read() == b"content"


@pytest.mark.parametrize(
    "url, name",
    [
        ("https://host/a/R-50.pkl", "R-50.pkl"),
        ("https://host/a/b/model_final.pkl", "_a_b_model_final.pkl"),
        ("https://host/file?x=1#nice.pth", "nice.pth"),
    ],
)
def test_cached_names(url, name):
    assert cached_filename(url) == name
