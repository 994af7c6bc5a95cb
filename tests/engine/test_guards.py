"""The guards, by making happen what they guard against."""
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from fcos_core.engine.guards import LossGuard, NonFiniteLossError, NothingToTrainError, StopSignals, TrainingInterrupted
from fcos_core.engine.report import read_metrics
from fcos_core.utils.checkpoint import read_checkpoint
from fcos_core.utils.safe_pickle import load_torch_file
from tests.engine.tiny import TinyLoader, build, train

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def poison(batch):
    """One pixel of the second image becomes NaN."""
    batch[0].tensors[1, 0, 0, 0] = float("nan")


def files(folder, ending=".pth"):
    return sorted(name for name in os.listdir(str(folder)) if name.endswith(ending))


def losses_of(folder):
    lines = read_metrics(str(folder / "metrics.jsonl"))
    return [(line["iteration"], line["loss_cls"], line["loss_reg"]) for line in lines]


def test_non_finite_loss_stops_and_names_everything(tmp_path):
    with pytest.raises(NonFiniteLossError) as error:
        train(tmp_path, 10, period=2, before={6: poison})
    message = str(error.value)
    for word in ("loss_cls is nan", "loss_reg is nan", "iteration 6", "[600, 601]", "nonfinite_0000006_rank0.pth"):
        assert word in message
    batch = load_torch_file(str(tmp_path / "nonfinite_0000006_rank0.pth"))
    wanted = TinyLoader(10).make(6)
    poison(wanted)
    assert torch.equal(torch.isnan(batch["images"]["tensors"]), torch.isnan(wanted[0].tensors))
    assert torch.equal(batch["targets"][1]["bbox"], wanted[1][1].bbox)
    assert batch["iteration"] == 6 and batch["image_ids"] == [600, 601]
    assert files(tmp_path) == ["model_0000002.pth", "model_0000004.pth", "nonfinite_0000006_rank0.pth"]


def test_after_a_non_finite_loss_the_last_good_checkpoint_resumes(tmp_path):
    with pytest.raises(NonFiniteLossError):
        train(tmp_path / "bad", 8, period=2, before={6: poison})
    train(tmp_path / "good", 8, period=2)
    resumed = train(tmp_path / "bad", 8, period=2)
    assert all(torch.isfinite(p).all() for p in resumed.parameters())
    assert losses_of(tmp_path / "bad") == losses_of(tmp_path / "good")


def test_parameters_stay_untouched_on_the_cpu(tmp_path):
    model, optimizer, scheduler, checkpointer = build(tmp_path)
    from fcos_core.engine.trainer import do_train

    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(NonFiniteLossError):
        do_train(
            model, TinyLoader(3, before={1: poison}), optimizer, scheduler, checkpointer, torch.device("cpu"), 1,
            {"iteration": 0},
        )
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_non_finite_gradient_norm_is_caught_before_the_update(tmp_path):
    """Finite losses with an infinite gradient: sqrt at 0."""

    class Rooted(torch.nn.Module):
        def __init__(self):
            super(Rooted, self).__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, images, targets):
            return {"loss_root": self.weight.abs().sqrt()}

    from fcos_core.engine.trainer import do_train
    from fcos_core.utils.checkpoint import Checkpointer

    def run(**options):
        model = Rooted()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
        checkpointer = Checkpointer(model, optimizer, scheduler, str(tmp_path), True)
        loader = TinyLoader(1)
        do_train(model, loader, optimizer, scheduler, checkpointer, torch.device("cpu"), 1, {"iteration": 0}, **options)

    with pytest.raises(NonFiniteLossError, match="gradient norm is nan"):
        run(clip_gradients=1.0)
    with pytest.raises(NonFiniteLossError, match="the first is weight; no checkpoint was written"):
        run()
    assert files(tmp_path) == ["nonfinite_0000001_rank0.pth"]


def lagging_guard(tmp_path, stop=None, **options):
    """The guard as it works on a GPU: looks at an iteration when the second one after it has come."""
    guard = LossGuard(torch.device("cpu"), str(tmp_path), stop or StopSignals(), **options)
    guard._lag = LossGuard.LAG
    return guard


def test_late_look_still_names_the_right_iteration_and_batch(tmp_path):
    guard = lagging_guard(tmp_path, image_name=lambda index: f"picture_{index}.jpg")
    batches = {number: TinyLoader(9).make(number) for number in range(1, 9)}
    values = {3: float("inf")}
    with pytest.raises(NonFiniteLossError) as error:
        for number in range(1, 9):
            losses = {"loss_a": torch.tensor(values.get(number, 1.0)), "loss_b": torch.ones(())}
            guard.watch(number, losses, batches[number])
    assert number == 5
    assert "loss_a is inf at iteration 3" in str(error.value) and "picture_301.jpg" in str(error.value)
    saved = load_torch_file(str(tmp_path / "nonfinite_0000003_rank0.pth"))
    assert torch.equal(saved["images"]["tensors"], batches[3][0].tensors)
    assert saved["losses"] == {"loss_a": float("inf"), "loss_b": 1.0}


def test_draining_finds_what_was_not_looked_at_yet(tmp_path):
    guard = lagging_guard(tmp_path)
    guard.watch(1, {"loss": torch.tensor(float("nan"))}, TinyLoader(9).make(1))
    with pytest.raises(NonFiniteLossError, match="iteration 1"):
        guard.drain()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.cuda
def test_late_look_on_a_gpu(tmp_path):
    guard = LossGuard(torch.device("cuda"), str(tmp_path), StopSignals())
    with pytest.raises(NonFiniteLossError, match="iteration 2"):
        for number in range(1, 6):
            loss = torch.full((), float("nan") if number == 2 else 1.0, device="cuda")
            guard.watch(number, {"loss": loss}, TinyLoader(9).make(number))
    assert number == 4


def test_zero_iterations_are_refused(tmp_path):
    train(tmp_path, 4)
    with pytest.raises(NothingToTrainError, match="iteration 4 of SOLVER.MAX_ITER 4.*OUTPUT_DIR"):
        train(tmp_path, 4)
    train(tmp_path, 5)  # more iterations go on
    assert read_checkpoint(str(tmp_path / "model_final.pth"))["iteration"] == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_iteration_and_saves(tmp_path, number, caplog):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    folder = tmp_path / "stopped"
    with pytest.raises(TrainingInterrupted) as stopped:
        train(folder, 10, period=100, before={4: lambda batch: os.kill(os.getpid(), number)})
    assert stopped.value.code == 128 + number
    assert files(folder) == ["model_0000004.pth"]
    assert "after iteration 4" in caplog.text
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    train(folder, 10)
    train(tmp_path / "whole", 10)
    assert len(losses_of(folder)) == 10 and losses_of(folder) == losses_of(tmp_path / "whole")


def test_third_interrupt_is_immediate():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert stop.requested == signal.SIGINT


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated."), EOFError(), ConnectionResetError()],
)
def test_loader_that_dies_of_the_same_signal_does_not_prevent_saving(tmp_path, error):
    def die(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        raise error

    with pytest.raises(TrainingInterrupted):
        train(tmp_path, 10, period=100, before={4: die})
    assert read_checkpoint(str(tmp_path / "model_0000003.pth"))["iteration"] == 3


def start_program(folder, *arguments):
    os.makedirs(str(folder), exist_ok=True)
    command = [sys.executable, "-m", "tests.engine.tiny", str(folder)] + list(arguments)
    # the same number of threads as this process: sums are split by it, and the last bits of the losses follow
    environment = dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads()))
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(path, process):
    for _ in range(1200):
        if os.path.exists(str(path)):
            return
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_sigterm_from_outside_ends_the_process_without_a_traceback(tmp_path):
    process = start_program(tmp_path, "--hang-at", "6")
    wait_for(tmp_path / "hanging", process)
    process.send_signal(signal.SIGTERM)
    (tmp_path / "go").write_text("")
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Traceback" not in output and "Stopped by signal 15 after iteration 6" in output
    assert read_checkpoint(str(tmp_path / "model_0000006.pth"))["iteration"] == 6


@pytest.mark.parametrize("cut", [False, True])
def test_kill_9_then_resume_gives_the_same_losses(tmp_path, cut, caplog):
    """Bit for bit, from the last periodic checkpoint; with that one cut in half, from the one before."""
    train(tmp_path / "whole", 12)
    process = start_program(tmp_path / "killed", "--iterations", "12", "--hang-at", "11")
    wait_for(tmp_path / "killed" / "hanging", process)
    process.kill()
    process.communicate()
    newest = str(tmp_path / "killed" / "model_0000008.pth")
    if cut:
        with open(newest, "r+b") as stream:
            stream.truncate(os.path.getsize(newest) // 2)
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")[:10]
    with caplog.at_level(logging.INFO):
        train(tmp_path / "killed", 12)
    assert f"iteration {5 if cut else 9} to 12" in caplog.text
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")
    whole, killed = (read_checkpoint(str(tmp_path / name / "model_final.pth")) for name in ("whole", "killed"))
    assert all(torch.equal(whole["model"][name], killed["model"][name]) for name in whole["model"])
