"""Command lines of train_net.py and remove_solver_states.py; what they start is tested in tests/engine."""
import importlib.util
import os
import subprocess
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def tool(name):
    spec = importlib.util.spec_from_file_location(name, os.path.join(ROOT, "tools", name + ".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def started(monkeypatch):
    """What run_training is called with, instead of training."""
    from fcos_core.engine import run

    calls = []
    monkeypatch.setattr(run, "run_training", lambda *args: calls.append(args) or 0)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    return calls


def test_file_options_and_flag_reach_the_run(started):
    config = os.path.join(ROOT, "configs", "fcos", "fcos_R_50_FPN_1x.yaml")
    assert tool("train_net").main(["--config-file", config, "--skip-test", "SOLVER.MAX_ITER", "7", "SEED", "3"]) == 0
    cfg, explicit, skip_test = started[0]
    assert (cfg.SOLVER.MAX_ITER, cfg.SEED, skip_test) == (7, 3, True)
    assert {"SEED", "SOLVER.MAX_ITER", "SOLVER.BASE_LR"} <= explicit and "MODEL.FCOS.NUM_CLASSES" not in explicit


@pytest.mark.parametrize("spelling", ["--local_rank", "--local-rank"])
def test_both_spellings_of_the_local_rank(started, spelling):
    assert tool("train_net").main([spelling + "=5"]) == 0
    assert os.environ["LOCAL_RANK"] == "5"
    assert tool("train_net").main(["SEED", "1"]) == 0
    assert os.environ["LOCAL_RANK"] == "5"  # as the launcher set it
    assert started[0][2] is False


def test_exit_code_is_that_of_the_run(started, monkeypatch):
    from fcos_core.engine import run

    monkeypatch.setattr(run, "run_training", lambda *args: 1)
    assert tool("train_net").main([]) == 1


def test_errors_of_the_user_are_one_sentence(started, capsys):
    assert tool("train_net").main(["--config-file", "nowhere.yaml"]) == 1
    assert tool("train_net").main(["SOLVER.MAX_ITERS", "7"]) == 1
    printed = capsys.readouterr().out
    assert "nowhere.yaml, which does not exist" in printed and "did you mean SOLVER.MAX_ITER" in printed
    assert started == [] and "Traceback" not in printed


def test_help_needs_no_torch():
    """It answers at once, also where torch is missing or broken."""
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['x', '--help']; "
        "runpy.run_path('tools/train_net.py', run_name='__main__')"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode()
    assert "--config-file" in output and "torchrun" in output


def test_remove_solver_states(tmp_path, capsys):
    path = str(tmp_path / "model_final.pth")
    torch.save({"model": {"w": torch.ones(1)}, "iteration": 5, "optimizer": {}}, path)
    assert tool("remove_solver_states").main([path]) == 0
    assert "model_final_wo_solver_states.pth without optimizer, iteration" in capsys.readouterr().out
    assert sorted(torch.load(str(tmp_path / "model_final_wo_solver_states.pth"))) == ["model"]
