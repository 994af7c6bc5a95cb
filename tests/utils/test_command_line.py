"""Errors that a user can mend are one sentence; all others keep their traceback."""

import argparse
import os

import pytest

from fcos_core.build import BuildError
from fcos_core.config import load_config
from fcos_core.data import resolve_num_classes
from fcos_core.layers import IOULoss
from fcos_core.utils import command_line
from fcos_core.utils.command_line import exit_code_of
from fcos_core.utils.preflight import resolve_device
from fcos_core.utils.safe_pickle import load_torch_file


def raising(error):
    def work():
        raise error

    return work


def wrong_value_for_yacs():
    load_config("", ["SOLVER.MAX_ITER", "many"])


def broken_yaml(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("MODEL: [1, 2\n")
    return lambda: load_config(str(path))


FROM_A_WORKER = """Caught ImageReadError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "x.py", line 1
fcos_core.data.datasets.detection.ImageReadError: read_image: expected a readable image, got 'a.jpg'
"""
USER_ERRORS = [
    (lambda: load_config("nowhere.yaml"), "load_config: expected a yaml file, got nowhere.yaml"),
    (lambda: load_config("", ["SOLVER.MAX_ITERS", "7"]), "load_config: expected a known key, got SOLVER.MAX_ITERS"),
    (lambda: load_config("", ["SEED"]), "load_config: expected KEY VALUE pairs"),
    (wrong_value_for_yacs, "load_config: Type mismatch"),
    (lambda: resolve_device("gpu"), "resolve_device: expected MODEL.DEVICE"),
    (lambda: resolve_num_classes(load_config()[0], ("no_such_set",), False), "no_such_set"),
    (lambda: load_torch_file(os.devnull), "expected a complete file"),
    (raising(BuildError("no C++ compiler found; install one")), "no C++ compiler found; install one"),
    (raising(FileNotFoundError(2, "No such file or directory", "a.json")), "a.json"),
    (raising(ModuleNotFoundError("No module named 'yacs'", name="yacs")), "'yacs'; python -m fcos_core.doctor says"),
    (raising(RuntimeError(FROM_A_WORKER)), "read_image: expected a readable image, got 'a.jpg'"),
]


@pytest.mark.parametrize("number", range(len(USER_ERRORS)))
def test_an_error_of_the_user_is_one_sentence(number, capsys):
    work, words = USER_ERRORS[number]
    assert exit_code_of(work) == 1
    printed = capsys.readouterr().out
    assert words in printed and "Traceback" not in printed


def test_a_broken_yaml_file(tmp_path, capsys):
    assert exit_code_of(broken_yaml(tmp_path)) == 1
    assert "a.yaml" in capsys.readouterr().out


def wrong_call_of_a_layer():
    IOULoss("no such loss")


PROGRAMMERS = [
    raising(ValueError("bad")),
    raising(KeyError("gone")),
    raising(RuntimeError("CUDA error: device-side assert triggered")),
    raising(RuntimeError("Caught ZeroDivisionError in DataLoader worker process 0.\nZeroDivisionError: division")),
    raising(ModuleNotFoundError("No module named 'fcos_core.mine'", name="fcos_core.mine")),
    wrong_call_of_a_layer,
]


@pytest.mark.parametrize("work", PROGRAMMERS)
def test_other_errors_keep_their_traceback(work):
    with pytest.raises(Exception) as caught:
        exit_code_of(work)
    assert command_line.sentence_for_user(caught.value) is None


def test_the_traceback_on_request(monkeypatch):
    monkeypatch.setenv("FCOS_CORE_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        exit_code_of(lambda: load_config("nowhere.yaml"))


def test_exit_codes():
    assert exit_code_of(lambda: None) == 0 and exit_code_of(lambda: 3) == 3
    with pytest.raises(SystemExit):
        exit_code_of(raising(SystemExit(143)))


def test_other_processes_of_a_run_speak_up_on_stderr(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    assert exit_code_of(lambda: load_config("nowhere.yaml")) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("rank 3: load_config: expected a yaml file") and captured.out == ""


def test_shared_arguments(monkeypatch):
    parser = command_line.make_parser("What it does.\n\n    an example")
    command_line.add_run_arguments(parser)
    args = parser.parse_args(["--config-file", "a.yaml", "--local-rank", "2", "SEED", "1"])
    assert args == argparse.Namespace(config_file="a.yaml", local_rank=2, opts=["SEED", "1"])
    monkeypatch.setenv("LOCAL_RANK", "7")
    command_line.set_local_rank(parser.parse_args([]))
    assert os.environ["LOCAL_RANK"] == "7"
    command_line.set_local_rank(args)
    assert os.environ["LOCAL_RANK"] == "2"
