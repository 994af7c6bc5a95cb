"""Scripts written for the predecessors, run as they are: tests/old_scripts, under both names of the package."""
import os
import socket
import subprocess
import sys

import pytest

from fcos_core.engine.predictions import load_predictions
from tests.engine.own_data import options, write_data

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

# twice the width of the thin model: groups of one value cannot be normalised
WIDE = {"MODEL__RESNETS__BACKBONE_OUT_CHANNELS": 64}
FCOS = dict(WIDE, MODEL__FCOS__NUM_CLASSES=3, MODEL__FCOS__INFERENCE_TH=0.001)
ATSS = dict(WIDE, MODEL__ATSS__NUM_CLASSES=3, MODEL__ATSS__INFERENCE_TH=0.001, MODEL__ATSS__NUM_CONVS=1)
CONFIGS = {
    "fcos_core": ("fcos/fcos_imprv_R_50_FPN_1x.yaml", FCOS),
    "atss_core": ("atss/atss_R_50_FPN_1x.yaml", ATSS),
}


def script(folder, name, package):
    """A copy of an old script that imports from the package of that name."""
    with open(os.path.join(HERE, "old_scripts", name + ".py"), encoding="utf-8") as stream:
        text = stream.read()
    assert "fcos_core.config import cfg" in text
    path = os.path.join(str(folder), "{}_{}.py".format(package, name))
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text.replace("fcos_core", package))
    return path


def start(path, *arguments, **environment):
    environment = {key: str(value) for key, value in environment.items()}
    folders = os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])
    environment.update(PYTHONPATH=folders, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    return subprocess.Popen(
        [sys.executable, path] + [str(word) for word in arguments],
        cwd=os.path.dirname(path),
        env=dict(os.environ, **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process):
    output = process.communicate(timeout=300)[0].decode(errors="replace")
    assert process.returncode == 0, output
    return output


def config_file(package):
    return os.path.join(ROOT, "configs", *CONFIGS[package][0].split("/"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), [2, 1, 0, 3])


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def trained(request, data, tmp_path_factory):
    """(package, output folder, output of the script) of a training of two iterations; that of atss_core runs in two
    processes."""
    package = request.param
    folder = tmp_path_factory.mktemp(package)
    output = folder / "output"
    path = script(folder, "train_net", package)
    words = ["--config-file", config_file(package)]
    words += options(data, output, SOLVER__MAX_ITER=2, SOLVER__CHECKPOINT_PERIOD=1, MODEL__WEIGHT="",
                     **CONFIGS[package][1])  # fmt: skip
    setup = folder / "setup.py"
    setup.write_text("def setup_environment():\n    print('the set-up code has run')\n")
    if package == "fcos_core":
        return package, output, finish(start(path, *words, TORCH_DETECTRON_ENV_MODULE=setup))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": probe.getsockname()[1]}
    common["TORCH_DETECTRON_ENV_MODULE"] = setup
    both = [start(path, "--local_rank", rank, *words, RANK=rank, LOCAL_RANK=rank, **common) for rank in (0, 1)]
    return package, output, [finish(process) for process in both][0]


def test_the_training_script(trained):
    package, output, printed = trained
    assert "the set-up code has run" in printed
    assert sorted(path.name for path in output.glob("*.pth")) == [
        "model_0000001.pth",
        "model_0000002.pth",
        "model_final.pth",
    ]
    log = (output / "log.txt").read_text()
    for text in (printed, log):
        assert "{} INFO: Using".format(package) in text  # the script's own lines
        assert "Start training" in text and "loss_centerness" in text  # those of the package
        assert "Average Precision" in text or "AP50" in text
    predictions = load_predictions(str(output / "inference" / "predictions.pth"))
    assert sorted(predictions) == [0, 1, 2, 3]
    assert (output / "inference" / "bbox.json").exists()


def test_the_test_script_takes_the_last_checkpoint(trained, data, tmp_path):
    """At several scales, which nothing that the script hands over says but the config of the loader."""
    package, output, _ = trained
    head = "ATSS" if package == "atss_core" else "FCOS"
    path = script(tmp_path, "test_net", package)
    words = ["--config-file", config_file(package)] + options(data, output, MODEL__WEIGHT="", **CONFIGS[package][1])
    words += "TEST.DETECTIONS_PER_IMG 5 TEST.BBOX_AUG.ENABLED True TEST.BBOX_AUG.H_FLIP True".split()
    words += ["TEST.BBOX_AUG.SCALES", "(64,)"]
    if package == "atss_core":
        words += "TEST.BBOX_AUG.VOTE True TEST.BBOX_AUG.SCALE_RANGES ((0,10000),)".split()
    printed = finish(start(path, *words))
    assert "model_final.pth" in printed and "Resuming from" in printed
    assert "{}_ON: True".format(head) in printed
    predictions = load_predictions(str(output / "inference" / "test_0" / "predictions.pth"))
    assert sorted(predictions) == [0, 1, 2, 3]
    # after a vote the cut is at PRE_NMS_TOP_N
    most = max(map(len, predictions.values()))
    assert most == 5 if package == "fcos_core" else most > 5


def test_the_demo_script(trained, data, tmp_path):
    package, output, _ = trained
    if package == "atss_core":
        pytest.skip("the script is the same")
    path = script(tmp_path, "demo", package)
    words = ["--config-file", config_file(package), "--weights", output / "model_final.pth"]
    words += ["--images-dir", data.split(":")[-1], "--min-image-size", 64, "--demo-dir", os.path.join(ROOT, "demo")]
    printed = finish(start(path, *(words + options(data, tmp_path, **CONFIGS[package][1]))))
    assert printed.count("inference time") == 4
