"""The whole run from a config: what it writes, resumes and refuses. A real, thin FCOS on the CPU."""
import logging
import os

import pytest
import torch

from fcos_core.engine import run
from fcos_core.engine.report import read_metrics
from fcos_core.engine.run import metrics_of, run_training
from fcos_core.utils.checkpoint import read_checkpoint
from tests.engine.own_data import config, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), [2, 1, 0, 3, 1, 0])


@pytest.fixture(autouse=True)
def fresh_logger():
    """`run_training` sets up the logger of the package; later tests want it as it was."""
    logger = logging.getLogger("fcos_core")
    logger.handlers.clear()
    yield
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def losses_of(folder):
    return [
        (line["iteration"], line["loss_cls"], line["loss_reg"], line["loss_centerness"])
        for line in read_metrics(str(folder / "metrics.jsonl"))
        if "loss" in line
    ]


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    """A finished run of six iterations, with a test in the middle and at the end."""
    folder = tmp_path_factory.mktemp("whole")
    cfg, explicit = config(data, folder, SOLVER__TEST_PERIOD=3)
    assert run_training(cfg, explicit) == 0
    return folder


def test_a_run_leaves_everything_behind(whole_run, data):
    names = os.listdir(str(whole_run))
    for name in "log.txt config.yml metrics.jsonl curves.png last_checkpoint model_final.pth inference".split():
        assert name in names
    assert len([name for name in names if name.startswith("detections_")]) == 4
    folder = os.path.join(str(whole_run), "inference")
    assert "predictions.pth" in os.listdir(os.path.join(folder, os.listdir(folder)[0]))
    metrics = read_metrics(str(whole_run / "metrics.jsonl"))
    assert [line["iteration"] for line in metrics if "AP" in line] == [3, 6]
    assert all(line["dataset"] == data for line in metrics if "AP" in line)


def test_checkpoint_knows_classes_config_and_seed(whole_run):
    final = read_checkpoint(str(whole_run / "model_final.pth"))
    assert final["categories"] == ["kind1", "kind2"]
    assert "NUM_CLASSES: 3" in final["config"] and "CONV_BODY: R-50-FPN-RETINANET" in final["config"]
    assert final["sampler"] == {"seed": 1, "batches": 6}
    assert final["model"]["rpn.head.cls_logits.weight"].shape[0] == 2  # classes counted in the annotation file


def test_resumed_run_has_the_same_losses(whole_run, data, tmp_path):
    """Stopped after three iterations by MAX_ITER; with flips and the order of the data as random parts."""
    folder = tmp_path / "resumed"
    assert run_training(*config(data, folder, SOLVER__MAX_ITER=3), skip_test=True) == 0
    assert not (folder / "inference").exists()
    assert run_training(*config(data, folder), skip_test=True) == 0
    assert losses_of(folder) == losses_of(whole_run)
    whole, resumed = (read_checkpoint(str(f / "model_final.pth"))["model"] for f in (whole_run, folder))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_drawn_seed_is_kept_by_the_resumed_run(data, tmp_path):
    assert run_training(*config(data, tmp_path, SEED=-1, SOLVER__MAX_ITER=1), skip_test=True) == 0
    first = read_checkpoint(str(tmp_path / "model_final.pth"))["sampler"]["seed"]
    assert run_training(*config(data, tmp_path, SEED=-1, SOLVER__MAX_ITER=2), skip_test=True) == 0
    assert read_checkpoint(str(tmp_path / "model_final.pth"))["sampler"] == {"seed": first, "batches": 2}


def test_finished_run_is_refused_with_exit_code_1(whole_run, data, capsys):
    assert run_training(*config(data, whole_run)) == 1
    assert "SOLVER.MAX_ITER 6" in capsys.readouterr().out
    assert "Traceback" not in (whole_run / "log.txt").read_text()


def test_weights_start_a_new_run(whole_run, data, tmp_path, capsys):
    """The finished checkpoint as MODEL.WEIGHT: its tensors, but neither its iteration nor its optimizer."""
    weight = str(whole_run / "model_final.pth")
    assert run_training(*config(data, tmp_path, MODEL__WEIGHT=weight, SOLVER__MAX_ITER=1), skip_test=True) == 0
    assert "Start training: iteration 1 to 1" in capsys.readouterr().out
    assert losses_of(tmp_path)[0][0] == 1
    assert losses_of(tmp_path)[0][1:] != losses_of(whole_run)[0][1:]


def test_weights_of_other_classes_start_all_but_the_last_layer(whole_run, tmp_path, capsys):
    other = write_data(tmp_path / "other", [1, 2, 1, 1], classes=3)
    weight = str(whole_run / "model_final.pth")
    assert run_training(*config(other, tmp_path / "run", MODEL__WEIGHT=weight, SOLVER__MAX_ITER=1), skip_test=True) == 0
    assert "skipped 2 of another shape: rpn.head.cls_logits.weight" in capsys.readouterr().out


def test_wrong_number_of_classes_is_refused(data, tmp_path, capsys):
    assert run_training(*config(data, tmp_path, MODEL__FCOS__NUM_CLASSES=81)) == 1
    assert "expected MODEL.FCOS.NUM_CLASSES to be 3" in capsys.readouterr().out
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


def test_missing_gpu_is_one_sentence(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_training(*config(data, tmp_path, MODEL__DEVICE="cuda")) == 1
    output = capsys.readouterr().out
    assert "MODEL.DEVICE cpu" in output and len(output.strip().splitlines()) == 1


def test_gpu_that_torch_has_no_code_for_stops_before_the_model_is_built(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_60", "sm_70"], raising=False)
    monkeypatch.setattr(torch.version, "cuda", "10.2")
    monkeypatch.setattr(run, "build_detection_model", lambda cfg: pytest.fail("the model was built"))
    assert run_training(*config(data, tmp_path, MODEL__DEVICE="cuda")) == 1
    assert "no code for this GPU (sm_120)" in capsys.readouterr().out


def test_non_finite_loss_gives_exit_code_1_and_file_names(data, tmp_path, capsys):
    cfg, explicit = config(data, tmp_path, SOLVER__BASE_LR=1e30, SOLVER__CHECKPOINT_PERIOD=100)
    assert run_training(cfg, explicit) == 1
    output = capsys.readouterr().out
    assert "expected finite" in output and ".png" in output
    assert any(name.startswith("nonfinite_") for name in os.listdir(str(tmp_path)))
    assert not (tmp_path / "model_final.pth").exists()


def test_accumulation_counts_optimizer_steps(data, tmp_path):
    cfg, explicit = config(data, tmp_path, SOLVER__ACCUMULATE=2, SOLVER__MAX_ITER=2)
    assert run_training(cfg, explicit, skip_test=True) == 0
    final = read_checkpoint(str(tmp_path / "model_final.pth"))
    assert final["iteration"] == 2 and final["sampler"]["batches"] == 4


@pytest.mark.parametrize(
    "result, numbers",
    [
        (None, {}),
        ({}, {}),
        ({"ap": [0.1, 0.3], "map": 0.2}, {"map": 0.2}),
        ({"map": float("nan")}, {}),
    ],
)
def test_numbers_of_results(result, numbers):
    assert metrics_of(result) == numbers
