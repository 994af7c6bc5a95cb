"""tools/demo.py, run as a user runs it, with a small real model."""

import importlib.util
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("cv2")

from fcos_core.engine.demo import UnreadableError, find_inputs, read_picture  # noqa: E402
from fcos_core.modeling.detector import build_detection_model  # noqa: E402
from tests.thin import thin_config  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def load_tool(name):
    spec = importlib.util.spec_from_file_location("tool_" + name, os.path.join(ROOT, "tools", name + ".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of an untrained model of two classes that carries its config."""
    cfg = thin_config()
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    content = {"model": build_detection_model(cfg).state_dict(), "config": cfg.dump(), "categories": ["cat", "dog"]}
    torch.save(content, str(path))
    return str(path)


def save_picture(path, size=(120, 90), **options):
    pixels = np.random.RandomState(1).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(str(path), **options)
    return pixels


def run(*arguments):
    return load_tool("demo").main([str(argument) for argument in arguments])


def test_a_folder_of_pictures(weights, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    save_picture(folder / "one.png")
    save_picture(folder / "two.jpg", (200, 100))
    (folder / "notes.txt").write_text("no picture")
    assert run("--input", folder, "--weights", weights, "--output", out, "--min-score", "0.0") == 0
    assert sorted(os.listdir(str(out))) == ["detections.json", "one.png", "two.jpg"]
    records = json.loads((out / "detections.json").read_text())
    assert [os.path.basename(record["file"]) for record in records] == ["one.png", "two.jpg"]
    assert [(record["width"], record["height"]) for record in records] == [(120, 90), (200, 100)]
    for record in records:
        count = len(record["boxes"])
        assert count > 0 and count == len(record["scores"]) == len(record["labels"]) == len(record["names"])
        assert record["scores"] == sorted(record["scores"], reverse=True)
        assert set(record["names"]) <= {"cat", "dog"}
        assert all(name == ["cat", "dog"][label - 1] for name, label in zip(record["names"], record["labels"]))
        boxes = np.array(record["boxes"])
        assert boxes.min() >= 0 and (boxes[:, 2] <= record["width"]).all() and (boxes[:, 3] <= record["height"]).all()
    drawn = np.asarray(Image.open(str(out / "one.png")))
    assert drawn.shape == (90, 120, 3) and not np.array_equal(drawn, np.asarray(Image.open(str(folder / "one.png"))))


def test_minimal_score_old_spellings_and_size(weights, tmp_path):
    save_picture(tmp_path / "one.png")
    arguments = ["--weights", weights, "--output", tmp_path / "out", "--min-image-size", 64]
    assert run("--images-dir", tmp_path / "one.png", "--confidence", "0.999", *arguments) == 0
    (record,) = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert record["boxes"] == [] and record["width"] == 120
    original = np.asarray(Image.open(str(tmp_path / "one.png")))
    assert np.array_equal(np.asarray(Image.open(str(tmp_path / "out" / "one.png"))), original)  # nothing to draw


def test_unreadable_files_are_named_and_do_not_stop_the_rest(weights, tmp_path, capsys):
    save_picture(tmp_path / "good.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert run("--input", tmp_path, "--weights", weights, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "broken.jpg: not a readable picture" in printed and "broken.mp4: not a readable video" in printed
    assert "2 of 3 files could not be read" in printed
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 1


def test_nothing_processed_is_a_failure(weights, tmp_path, capsys):
    assert run("--input", tmp_path / "missing.jpg", "--weights", weights, "--output", tmp_path / "out") == 1
    assert "missing.jpg: not a readable picture" in capsys.readouterr().out
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("--input", empty, "--weights", weights, "--output", tmp_path / "out") == 1
    assert "No picture or video found in" in capsys.readouterr().out
    assert not (tmp_path / "out" / "detections.json").exists()


def test_errors_of_the_user_are_one_sentence(weights, tmp_path, capsys):
    save_picture(tmp_path / "one.png")
    assert run("--input", tmp_path / "one.png", "--weights", tmp_path / "nowhere.pth") == 1
    assert run("--input", tmp_path / "one.png", "--weights", weights, "SOLVER.NOTHING", "1") == 1
    printed = capsys.readouterr().out
    assert "nowhere.pth, which does not exist" in printed and "got SOLVER.NOTHING" in printed
    assert "Traceback" not in printed


def test_a_video_gives_a_video(weights, tmp_path):
    import cv2

    source = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(source, cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for k in range(3):
        writer.write(np.full((48, 64, 3), 80 * k, np.uint8))
    writer.release()
    assert run("--input", source, "--weights", weights, "--output", tmp_path / "out", "--min-score", "0.0") == 0
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [record["frame"] for record in records] == [0, 1, 2]
    reader = cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4"))
    frames = 0
    while True:
        good, frame = reader.read()
        if not good:
            break
        assert frame.shape == (48, 64, 3)
        frames += 1
    assert frames == 3 and reader.get(cv2.CAP_PROP_FPS) == pytest.approx(10.0, abs=0.1)
    reader.release()


def test_equal_names_of_different_folders_do_not_collide(weights, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_picture(tmp_path / folder / "x.png")
    assert run("--input", tmp_path / "a", tmp_path / "b", "--weights", weights, "--output", tmp_path / "out") == 0
    assert sorted(os.listdir(str(tmp_path / "out"))) == ["detections.json", "x.png", "x_2.png"]


def test_patterns_and_order(tmp_path):
    for name in ("b.png", "a.png", "c[1].png", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "e.png").write_bytes(b"")

    def names(*words):
        return [os.path.basename(path) for path in find_inputs([str(word) for word in words])]

    assert names(tmp_path / "[ab].png") == ["a.png", "b.png"]
    assert names(tmp_path / "**" / "*.png") == ["a.png", "b.png", "c[1].png", "e.png"]
    assert names(tmp_path / "c[1].png") == ["c[1].png"]  # exists, so it is no pattern
    assert names(tmp_path) == ["a.png", "b.png", "c[1].png"]
    assert names(tmp_path / "b.png", tmp_path / "*.png") == ["b.png", "a.png", "c[1].png"]
    assert names(tmp_path / "nowhere.png") == ["nowhere.png"]


def test_pictures_are_upright_and_blue_first(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :, 0] = 200  # red
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.fromarray(pixels).save(str(tmp_path / "turned.png"), exif=exif.tobytes())
    image = read_picture(str(tmp_path / "turned.png"))
    assert image.shape == (40, 20, 3) and image[0, 0].tolist() == [0, 0, 200]
    Image.fromarray(pixels[:, :, 0]).save(str(tmp_path / "gr\u00fcn \u732b.png"))  # grey, and letters beyond ASCII
    assert read_picture(str(tmp_path / "gr\u00fcn \u732b.png"))[3, 3].tolist() == [200, 200, 200]
    with pytest.raises(UnreadableError, match="not a readable picture"):
        read_picture(str(tmp_path))
