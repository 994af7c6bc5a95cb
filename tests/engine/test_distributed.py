"""Two processes against one: the same losses for the same images, and agreement on when to stop. Gloo on the CPU."""
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from fcos_core.engine.report import read_metrics
from fcos_core.layers._library import load
from fcos_core.utils.checkpoint import read_checkpoint
from tests.engine.own_data import options, write_data

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launcher(processes):
    """torchrun, or what torch 1.7 has in its place."""
    try:
        import torch.distributed.run  # noqa: F401

        module = "torch.distributed.run"
    except ImportError:
        module = "torch.distributed.launch"
    return [sys.executable, "-m", module, "--nproc_per_node", str(processes), "--master_port", free_port()]


def start(processes, *program):
    command = launcher(processes) if processes > 1 else [sys.executable]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([ROOT] + sys.path))
    return subprocess.Popen(
        command + list(program), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.fixture(scope="module", autouse=True)
def operators():
    """Build the compiled operators, if need be, before the clock of the child processes runs."""
    load()


def train(processes, opts):
    process = start(processes, os.path.join(ROOT, "tools", "train_net.py"), "--skip-test", *opts)
    output = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, output
    return output


# One process gets the first or the second half of a random order of the four images. With one image that has boxes,
# one of the two processes is always without a positive location.
@pytest.mark.parametrize("boxes", [[2, 1, 3, 1], [2, 0, 0, 0]], ids=["both with boxes", "one without positives"])
def test_two_processes_give_the_losses_of_one(tmp_path, boxes):
    data = write_data(tmp_path / "data", boxes)
    fixed = {"INPUT__HORIZONTAL_FLIP_PROB_TRAIN": 0.0, "SOLVER__MAX_ITER": 4, "SOLVER__WARMUP_ITERS": 2}
    outputs = [train(n, options(data, tmp_path / str(n), **fixed)) for n in (1, 2)]
    assert "Using 2 process(es)" in outputs[1]
    one, two = (read_metrics(str(tmp_path / str(n) / "metrics.jsonl")) for n in (1, 2))
    assert len(one) == len(two) == 4
    for ours, theirs in zip(two, one):
        for name in ("loss_cls", "loss_reg", "loss_centerness", "lr"):
            assert ours[name] == pytest.approx(theirs[name], rel=5e-6, abs=1e-7), (name, ours["iteration"])
    assert one[0]["loss_reg"] > 0 and one[0]["loss_cls"] != one[-1]["loss_cls"]
    whole, parts = (read_checkpoint(str(tmp_path / str(n) / "model_final.pth")) for n in (1, 2))
    assert sorted(whole["model"]) == sorted(parts["model"])  # no prefix of the wrapper
    for name, value in whole["model"].items():
        assert torch.allclose(parts["model"][name], value, rtol=1e-3, atol=1e-5), name
    assert len(parts["rng"]) == 2


def test_all_processes_stop_at_the_same_iteration(tmp_path):
    """SIGTERM reaches only one of them."""
    program = os.path.join(ROOT, "tests", "engine", "two_processes.py")
    process = start(2, program, "stop", str(tmp_path))
    pid_file = tmp_path / "pid1"
    for _ in range(1200):
        if pid_file.exists() and pid_file.read_text().endswith("\n"):
            break
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.05)
    os.kill(int(pid_file.read_text()), signal.SIGTERM)
    output = process.communicate(timeout=120)[0].decode()
    stopped = [(tmp_path / f"stopped{rank}").read_text() for rank in (0, 1)]
    assert stopped[0] == stopped[1], output
    code, iteration = stopped[0].split()
    assert int(code) == 128 + signal.SIGTERM and 0 < int(iteration) < 1000
    assert read_checkpoint(str(tmp_path / f"model_{int(iteration):07d}.pth"))["iteration"] == int(iteration)


def test_helpers_and_a_non_finite_loss_of_one_process(tmp_path):
    process = start(2, os.path.join(ROOT, "tests", "engine", "two_processes.py"), "check", str(tmp_path))
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output
    assert [(tmp_path / f"done{rank}").read_text() for rank in (0, 1)] == ["yes", "yes"], output


# as an old script does it: joins, waits for the others, and never leaves
OLD_SCRIPT = """
import atexit, os, sys, torch.distributed as dist
atexit.register(lambda: print("group stands", dist.is_initialized(), flush=True))  # called last
from fcos_core.utils.comm import synchronize
dist.init_process_group("gloo", init_method="env://")
synchronize()
if len(sys.argv) > 1:
    raise ValueError("in one process" if dist.get_rank() == 0 else "in the other")
"""


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
def test_a_script_that_never_leaves_the_group(fails):
    """The group is left at the end, which could abort otherwise, and left alone after an exception."""
    port = free_port()
    processes = []
    for rank in ("0", "1"):
        environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([ROOT] + sys.path), RANK=rank)
        environment.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", OLD_SCRIPT] + ["fail"] * fails,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    for process in processes:
        output = process.communicate(timeout=120)[0].decode()
        assert "group stands {}".format(fails) in output, output
        if not fails:
            assert process.returncode == 0, output
