"""The package `fcos`, its command, and the demo scripts, with weights of random models."""
import functools
import http.server
import importlib.util
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import fcos
from fcos import command
from fcos_core.config import load_config
from fcos_core.config.files import find_config
from fcos_core.modeling.detector import build_detection_model
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.image_list import to_image_list

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAME = "fcos_R_50_FPN_1x"
THIN = [
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.FCOS.NUM_CONVS", 1,
]  # fmt: skip


def save_weights(path, name, options=(), bias=0.0):
    """A checkpoint of a random model; the logits of three classes are about `bias`.  Returns the model."""
    torch.manual_seed(3)
    cfg, _ = load_config(find_config("fcos/{}.yaml".format(name)), list(options))
    model = build_detection_model(cfg)
    torch.nn.init.constant_(model.rpn.head.cls_logits.bias, -9.0)
    torch.nn.init.constant_(model.rpn.head.cls_logits.bias[::30], bias)
    for module in model.modules():  # predictions of their own at every location
        if isinstance(module, torch.nn.Conv2d) and module.out_channels in (80, 4, 1):
            torch.nn.init.normal_(module.weight, std=0.05)
    torch.save({"model": model.state_dict()}, str(path))
    return model.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("fcos") / "thin.pth"
    return path, save_weights(path, NAME, THIN, bias=1.0)


@pytest.fixture(scope="module")
def detector(weights):
    return fcos.FCOS(NAME, 0.5, True, weights=str(weights[0]), opts=THIN)


def picture(height=96, width=128):
    return np.random.RandomState(0).randint(0, 255, (height, width, 3)).astype(np.uint8)


def test_detections_are_those_of_the_model_on_the_picture_as_it_is(detector, weights):
    im = picture()
    results = detector.detect(im, min_confidence=0.6)
    assert results and all(set(found) == {"box", "score", "label_name", "label_id"} for found in results)
    scores = [found["score"] for found in results]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 0.6
    assert all(found["label_name"] == detector.CATEGORIES[found["label_id"]] for found in results)
    # blue, green, red minus the mean, not resized
    pixels = torch.from_numpy(im.transpose(2, 0, 1).astype(np.float32))
    pixels -= torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]
    model = weights[1]
    model.rpn.box_selector_test.nms_thresh = 0.5
    with torch.no_grad():
        (expected,) = model(to_image_list([pixels], 32))
    expected = expected[expected.get_field("scores") > 0.6]
    assert len(expected) == len(results)
    assert np.abs(np.array([found["box"] for found in results]) - expected.bbox.numpy()).max() < 1e-2


def test_thresholds_are_strict_and_may_differ_by_class(detector):
    im = picture()
    by_class = detector.detect(im)
    limits = detector.confidence_thresholds_for_classes
    assert by_class and all(found["score"] > limits[found["label_id"] - 1] for found in by_class)
    top = by_class[0]["score"]
    assert len(detector.detect(im, top)) == 0 and len(detector.detect(im, [1.0] * 80)) == 0
    only = [1.0] * 80
    only[by_class[0]["label_id"] - 1] = 0.0
    assert {found["label_id"] for found in detector.detect(im, only)} == {by_class[0]["label_id"]}
    with pytest.raises(ValueError, match="uint8"):
        detector.detect(im.astype(np.float32))


def test_names_of_models_and_classes(detector, monkeypatch):
    assert detector.list_available_models() == [NAME, command.MODEL]
    assert len(fcos.FCOS.CATEGORIES) == 81 and fcos.FCOS.CATEGORIES[:2] == ["__background", "person"]
    with pytest.raises(ValueError, match="expected model_name one of fcos_R_50"):
        fcos.FCOS("fcos_R_1")
    assert detector.cfg.MODEL.FCOS.NMS_TH == 0.5 and detector.device.type == "cpu"


def test_weights_come_from_the_web_or_from_where_the_variable_says(weights, monkeypatch):
    asked = []
    monkeypatch.setattr("fcos_core.utils.checkpoint.cache_url", lambda url: asked.append(url) or str(weights[0]))
    fcos.FCOS(NAME, cpu_only=True, opts=THIN)
    assert len(asked) == 1 and asked[0].startswith("https://") and asked[0].endswith("#fcos_R_50_FPN_1x.pth")
    monkeypatch.setenv("FCOS_WEIGHTS", str(weights[0]))
    fcos.FCOS(NAME, cpu_only=True, opts=THIN)
    assert len(asked) == 1


def test_colours_and_drawing(detector):
    labels = torch.tensor([1, 17, 80])
    expected = [[(label * factor) % 255 for factor in (2**25 - 1, 2**15 - 1, 2**21 - 1)] for label in labels.tolist()]
    assert detector.compute_colors_for_labels(labels).tolist() == expected
    im = picture()
    before = im.copy()
    drawn = detector.show_bboxes(im, detector.detect(im, 0.6))  # there is no display
    assert (im == before).all() and (drawn != im).any() and drawn.shape == im.shape
    assert (detector.show_bboxes(im, []) == im).all()
    found = BoxList([[10, 20, 30, 40]], (128, 96))
    found.add_field("labels", torch.tensor([3]))
    boxed = detector.overlay_boxes(im.copy(), found)
    assert boxed[20, 20].tolist() == detector.compute_colors_for_labels([3])[0].tolist()


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    monkeypatch.setattr("fcos_core.visualize.has_display", lambda: False)
    monkeypatch.setattr(command, "SHORT_SIDE", 96)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a picture and weights of the command's model, one that finds something and one that does not."""
    folder = tmp_path_factory.mktemp("command")
    Image.fromarray(picture(60, 90)).save(str(folder / "one.png"))
    save_weights(folder / "eager.pth", command.MODEL, bias=1.0)
    save_weights(folder / "shy.pth", command.MODEL, bias=-9.0)
    return folder


def test_the_command_prints_what_it_finds(files, tmp_path, capsys):
    target = tmp_path / "drawn.jpg"
    words = [str(files / "one.png"), "--cpu", "--weights", str(files / "eager.pth"), "--output", str(target)]
    assert command.run(words) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.split("\n") if line.endswith("]") and "[" in line]
    name, score, box = lines[0].rsplit(" ", 5)[0], lines[0].split("[")[0].split()[-1], lines[0].split("[")[1]
    assert name and len(score.split(".")[1]) == 2 and len(box.rstrip("]").split(", ")) == 4
    assert "s on cpu" in printed and Image.open(str(target)).size == (144, 96)  # short side 96


def test_the_command_without_detections_without_display_from_the_web(files, capsys):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(files))
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        address = "http://127.0.0.1:{}/one.png".format(server.server_port)
        assert command.run([address, "--cpu", "--weights", str(files / "shy.pth")]) == 0
        printed = capsys.readouterr().out
        assert "0 detections" in printed and "There is no display" in printed
        assert command.run([address + "x", "--cpu"]) == 1  # no such file
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_errors_of_the_user_are_one_sentence(files, capsys):
    (files / "text.png").write_text("no picture")
    assert command.run([str(files / "text.png")]) == 1 and command.run([str(files / "missing.png")]) == 1
    assert command.run([str(files / "one.png"), "--cpu", "--weights", "nowhere.pth"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("not a readable picture") == 2 and "nowhere.pth" in printed and "Traceback" not in printed


def test_help_and_import_need_nothing_heavy():
    code = "import sys, fcos.command; print(sorted({'torch', 'numpy', 'cv2'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, universal_newlines=True).strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        fcos.nowhere  # noqa: B018


@pytest.mark.parametrize("name", ["fcos_demo", "atss_demo"])
def test_demo_scripts(name, weights, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location(name, os.path.join(ROOT, "demo", name + ".py"))
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    words = ["--config-file", find_config("fcos/{}.yaml".format(NAME)), "--weights", str(weights[0])]
    words += ["--images-dir", str(files / "one.png"), "--min-image-size", "64", "--output", str(tmp_path)]
    assert demo.main(words + ["MODEL.DEVICE", "cpu"] + [str(word) for word in THIN]) == 0
    assert "one.jpg" in capsys.readouterr().out
    assert Image.open(str(tmp_path / "one.jpg")).size == (90, 60)
