"""tools/test_net.py, run as a user runs it, with a small real model on a small data set."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pycocotools")

from fcos_core.engine.predictions import load_predictions  # noqa: E402
from fcos_core.modeling.detector import build_detection_model  # noqa: E402
from tests.thin import thin_config  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOOL = os.path.join(ROOT, "tools", "test_net.py")


def load_tool():
    spec = importlib.util.spec_from_file_location("tool_test_net", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def trained(tmp_path):
    """A folder as a training leaves it: checkpoint with config and class names, and the record of the last one."""
    rng = np.random.RandomState(0)
    images, annotations = [], []
    for k in range(5):
        width, height = [(120, 90), (90, 120)][k % 2]
        Image.fromarray(rng.randint(0, 256, (height, width, 3)).astype(np.uint8)).save(str(tmp_path / ("%d.png" % k)))
        images.append({"id": k + 1, "file_name": "%d.png" % k, "width": width, "height": height})
        annotations.append({"id": k, "image_id": k + 1, "category_id": 1 + k % 2, "bbox": [10, 10, 40, 50]})
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    with open(str(tmp_path / "instances.json"), "w") as f:
        json.dump({"images": images, "annotations": annotations, "categories": categories}, f)
    with open(str(tmp_path / "bare.json"), "w") as f:
        json.dump({"images": images, "categories": categories}, f)
    data = "{}:{}".format(tmp_path / "instances.json", tmp_path)
    cfg = thin_config("DATALOADER.NUM_WORKERS", 0, "TEST.IMS_PER_BATCH", 2, "DATASETS.TEST", (data,))
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    content = {"model": build_detection_model(cfg).state_dict(), "config": cfg.dump(), "categories": ["cat", "dog"]}
    torch.save(content, str(folder / "model_final.pth"))
    (folder / "last_checkpoint").write_text(str(folder / "model_final.pth"))
    return folder


def result_folder(trained):
    (folder,) = (trained / "inference").iterdir()
    return folder


def test_the_folder_of_a_training_is_all_it_needs(trained, capsys):
    assert load_tool().main(["OUTPUT_DIR", str(trained)]) == 0
    printed = capsys.readouterr().out
    assert "Average Precision  (AP) @[ IoU=0.50:0.95" in printed and "dog" in printed
    files = result_folder(trained)
    detections = json.loads((files / "bbox.json").read_text())
    assert {row["image_id"] for row in detections} <= {1, 2, 3, 4, 5} and len(detections) > 0
    predictions = load_predictions(str(files / "predictions.pth"))
    assert sorted(predictions) == [0, 1, 2, 3, 4]
    assert sum(len(boxlist) for boxlist in predictions.values()) == len(detections)
    assert predictions[0].size == (128, 96)


def test_a_data_set_without_annotations(trained, capsys):
    data = trained.parent
    name = "('{}:{}',)".format(data / "bare.json", data)
    assert load_tool().main(["OUTPUT_DIR", str(trained), "DATASETS.TEST", name]) == 0
    printed = capsys.readouterr().out
    assert "no annotations" in printed
    # as a number: a path may hold a -1
    assert not re.search(r"(?<!\w)-1\b", printed.split("no annotations")[1])
    assert len(json.loads((result_folder(trained) / "bbox.json").read_text())) > 0


def test_multi_scale(trained):
    options = ["TEST.BBOX_AUG.ENABLED", "True", "TEST.BBOX_AUG.H_FLIP", "True", "TEST.BBOX_AUG.SCALES", "(64,)"]
    assert load_tool().main(["OUTPUT_DIR", str(trained)] + options + ["TEST.DETECTIONS_PER_IMG", "9"]) == 0
    predictions = load_predictions(str(result_folder(trained) / "predictions.pth"))
    assert sorted(predictions) == [0, 1, 2, 3, 4]
    assert all(0 < len(boxlist) <= 9 for boxlist in predictions.values())


@pytest.mark.parametrize(
    "options, words",
    [
        (["DATASETS.TEST", "()"], "expected DATASETS.TEST to name a data set"),
        (["MODEL.FCOS.NUM_CLASSES", "7"], "resolve_num_classes: expected MODEL.FCOS.NUM_CLASSES to be 3"),
        (["OUTPUT_DIR", "no_such_folder"], "expected trained weights"),
        (["DATASETS.TESTS", "()"], "expected a known key, got DATASETS.TESTS"),
    ],
)
def test_errors_of_the_user_are_one_sentence(trained, capsys, options, words):
    assert load_tool().main(["OUTPUT_DIR", str(trained)] + options) == 1
    printed = capsys.readouterr().out
    assert words in printed and "Traceback" not in printed


def test_other_class_names_give_a_warning(trained, capsys):
    content = torch.load(str(trained / "model_final.pth"))
    content["categories"] = ["dog", "cat"]
    torch.save(content, str(trained / "model_final.pth"))
    load_tool().main(["OUTPUT_DIR", str(trained)])
    assert "labels are compared by number" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun with gloo")
def test_two_processes_give_the_same_detections_as_one(trained):
    """Five images on two processes: one image is run twice and must count once."""
    load_tool().main(["OUTPUT_DIR", str(trained)])
    files = result_folder(trained)
    alone = load_predictions(str(files / "predictions.pth"))
    os.remove(str(files / "predictions.pth"))

    paths = [ROOT] + [path for path in [os.environ.get("PYTHONPATH")] if path]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1")
    environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE="2")
    processes = []
    for rank in range(2):
        one = dict(environment, RANK=str(rank), LOCAL_RANK=str(rank))
        command = [
            sys.executable,
            TOOL,
            "--local-rank" if rank else "--local_rank",
            str(rank),
            "OUTPUT_DIR",
            str(trained),
        ]
        processes.append(subprocess.Popen(command, env=one, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    outputs = [process.communicate(timeout=300)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "on 2 devices" in outputs[0] and "Average Precision" in outputs[0] and "Average Precision" not in outputs[1]
    together = load_predictions(str(files / "predictions.pth"))
    assert sorted(together) == sorted(alone)
    for index in alone:
        # Another batch, another padding: not bitwise the same
        best = alone[index].get_field("scores").sort(descending=True)[0][:20]
        assert together[index].get_field("scores").sort(descending=True)[0][:20].tolist() == pytest.approx(
            best.tolist(), abs=1e-3
        )


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
