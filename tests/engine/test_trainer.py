"""The training loop: what it computes, prints and leaves behind."""
import json
import logging
import os

import pytest
import torch

from fcos_core.engine.precision import Precision
from fcos_core.engine.report import TrainingReport, append_results, read_metrics
from fcos_core.engine.trainer import do_train, reduce_loss_dict
from fcos_core.utils.checkpoint import read_checkpoint
from tests.engine.tiny import TinyDetector, TinyLoader, build, train


def plain_loop(iterations, accumulate=1, max_norm=0.0, images=2):
    """The same training written without the package's loop: slow and obvious."""
    model, optimizer, scheduler, _ = build("", random=False)
    loader = iter(TinyLoader(iterations * accumulate, images=images))
    losses = []
    for _ in range(iterations):
        optimizer.zero_grad()
        total = 0.0
        for _ in range(accumulate):
            images_, targets, _ = next(loader)
            loss = sum(model(images_, targets).values())
            (loss / accumulate).backward()
            total += loss.item() / accumulate
        if max_norm:
            torch.nn.utils.clip_grad_norm_(list(model.parameters()), max_norm)
        optimizer.step()
        scheduler.step()
        losses.append(total)
    return model, losses


@pytest.mark.parametrize("accumulate, max_norm", [(1, 0.0), (3, 0.0), (1, 0.05)])
def test_same_result_as_a_plain_loop(tmp_path, accumulate, max_norm):
    model = train(tmp_path, 6, accumulate=accumulate, random=False, clip_gradients=max_norm)
    twin, losses = plain_loop(6, accumulate, max_norm)
    for ours, theirs in zip(model.state_dict().values(), twin.state_dict().values()):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    logged = [line["loss"] for line in read_metrics(str(tmp_path / "metrics.jsonl"))]
    assert logged == pytest.approx(losses, rel=1e-6)


def test_clipping_changes_the_result():
    """Otherwise the test above could not fail for it."""
    assert plain_loop(6, 1, 0.05)[1] != plain_loop(6)[1]


def test_checkpoints_at_the_period_and_at_the_end(tmp_path):
    train(tmp_path, 6, period=4)
    assert sorted(name for name in os.listdir(str(tmp_path)) if name.endswith(".pth")) == [
        "model_0000004.pth",
        "model_final.pth",
    ]
    final = read_checkpoint(str(tmp_path / "model_final.pth"))
    assert sorted(final) == ["iteration", "model", "optimizer", "rng", "sampler", "scaler", "scheduler"]
    assert final["iteration"] == 6 and final["sampler"] == {"batches": 6}


def test_lines_and_files(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(tmp_path, 7, log_period=3)
    lines = [record.getMessage() for record in caplog.records if "eta:" in record.getMessage()]
    assert len(lines) == 3  # iterations 3 and 6, and the last one
    for word in ("iter: 7", "loss: ", "loss_cls: ", "loss_reg: ", "time: ", "data: ", "lr: ", "max mem: "):
        assert word in lines[-1]
    metrics = read_metrics(str(tmp_path / "metrics.jsonl"))
    assert [line["iteration"] for line in metrics] == [3, 6, 7]
    assert metrics[0]["lr"] == pytest.approx(0.05 * (1 / 3 * (1 - 2 / 5) + 2 / 5))  # the rate that iteration 3 used
    assert all(line["loss"] == pytest.approx(line["loss_cls"] + line["loss_reg"]) for line in metrics)
    assert os.path.getsize(str(tmp_path / "curves.png")) > 5000


def test_averages_cover_the_iterations_between_the_lines(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(tmp_path, 4, log_period=4, random=False)
    mean = sum(plain_loop(4)[1]) / 4
    line = [record.getMessage() for record in caplog.records if "eta:" in record.getMessage()][0]
    assert f"({mean:.4f})" in line.split("loss_cls")[0]


def test_losses_are_read_only_where_a_line_is_due(tmp_path, monkeypatch):
    """On the way from model to report no loss is turned into a Python number, except where a line is printed."""
    reads = []
    real = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(tuple(self.shape)) or real(self))
    report = TrainingReport(6, "", log_period=3)
    for iteration in range(1, 7):
        report.iteration(iteration, {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(2.0)}, 0.1, 0.0, 0.1)
        assert len(reads) == iteration // 3
    assert reads == [(3, 2), (3, 2)]


def test_periodic_tests_are_written_and_leave_no_trace(tmp_path):
    train(tmp_path / "plain", 6)
    seen = []

    def run_test(model):
        seen.append(int(torch.randint(1000, (1,))))  # draws, as a loader of test data may
        model.eval()
        return {"shapes": {"AP": 0.25}}

    train(tmp_path / "tested", 6, test_period=2, run_test=run_test)
    assert len(seen) == 2  # after 2 and 4; the test at the end is the caller's
    metrics = read_metrics(str(tmp_path / "tested" / "metrics.jsonl"))
    assert [(line["iteration"], line["AP"]) for line in metrics if "AP" in line] == [(2, 0.25), (4, 0.25)]
    training = [line["loss"] for line in metrics if "loss" in line]
    assert training == [line["loss"] for line in read_metrics(str(tmp_path / "plain" / "metrics.jsonl"))]


def test_results_after_the_training_join_the_metrics(tmp_path):
    train(tmp_path, 3)
    before = os.path.getsize(str(tmp_path / "curves.png"))
    append_results(str(tmp_path), 3, {"shapes": {"AP": 0.5, "AP50": 0.75}})
    metrics = read_metrics(str(tmp_path / "metrics.jsonl"))
    assert len(metrics) == 4 and metrics[-1] == {"iteration": 3, "AP": 0.5, "AP50": 0.75, "dataset": "shapes"}
    assert os.path.getsize(str(tmp_path / "curves.png")) > before  # a second panel


def test_loader_that_ends_early_is_named(tmp_path):
    model, optimizer, scheduler, checkpointer = build(tmp_path)
    loader = TinyLoader(5, start=2)
    with pytest.raises(RuntimeError, match="no more at iteration 4"):
        do_train(model, loader, optimizer, scheduler, checkpointer, torch.device("cpu"), 9, {"iteration": 0})


def test_channels_last_and_bfloat16(tmp_path):
    reference = train(tmp_path / "a", 4, random=False)
    model = train(tmp_path / "b", 4, random=False, channels_last=True)
    assert torch.allclose(model.head.weight, reference.head.weight, atol=1e-6)
    if hasattr(torch, "autocast"):
        low = train(tmp_path / "c", 4, random=False, precision=Precision("bfloat16", "cpu"))
        assert torch.allclose(low.head.weight, reference.head.weight, atol=0.05)
        assert not torch.equal(low.head.weight, reference.head.weight)


def test_float16_scaler_is_saved_and_restored(tmp_path):
    if not hasattr(getattr(torch, "amp", None), "GradScaler"):
        with pytest.raises(ValueError, match="a GPU, or torch 2.3"):
            Precision("float16", "cpu")
        return
    train(tmp_path, 3, period=3, precision=Precision("float16", "cpu"))
    scale = read_checkpoint(str(tmp_path / "model_final.pth"))["scaler"]["scale"]
    precision = Precision("float16", "cpu")
    precision.load_state_dict(dict(precision.state_dict(), scale=scale / 8))
    assert precision.state_dict()["scale"] == scale / 8
    precision.load_state_dict(None)  # a checkpoint without it


@pytest.mark.parametrize("mode", ["fp16", "float32"])
def test_unknown_precision(mode):
    with pytest.raises(ValueError, match="SOLVER.AMP"):
        Precision(mode, "cpu")


def test_missing_tensorboard_and_matplotlib_cost_one_line_each(tmp_path, monkeypatch, caplog):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith(("torch.utils.tensorboard", "matplotlib")):
            raise ImportError(f"No module named {name}")
        return real(name, *args, **kwargs)

    report = TrainingReport(1, str(tmp_path), tensorboard=True)
    monkeypatch.setattr(builtins, "__import__", without)
    with caplog.at_level(logging.INFO), report:
        report.iteration(1, {"loss_a": torch.tensor(1.0)}, 0.1, 0.0, 0.1)
    assert sum("tensorboard" in record.getMessage() for record in caplog.records) == 1
    assert sum("matplotlib" in record.getMessage() for record in caplog.records) == 1
    assert sorted(os.listdir(str(tmp_path))) == ["metrics.jsonl"]


def test_tensorboard_files(tmp_path):
    pytest.importorskip("tensorboard")
    report = TrainingReport(1, str(tmp_path), tensorboard=True)
    with report:
        report.iteration(1, {"loss_a": torch.tensor(1.0)}, 0.1, 0.0, 0.1)
    events = os.listdir(str(tmp_path / "tensorboard"))
    assert len(events) == 1 and os.path.getsize(str(tmp_path / "tensorboard" / events[0])) > 100


def test_metrics_file_with_an_unfinished_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"iteration": 1}) + "\n" + json.dumps({"iteration": 2}) + '\n{"iterat')
    assert [line["iteration"] for line in read_metrics(str(path))] == [1, 2]
    with TrainingReport(4, str(tmp_path), start_iter=1):
        pass
    assert [line["iteration"] for line in read_metrics(str(path))] == [1]


def test_reduce_loss_dict_of_one_process():
    losses = {"a": torch.tensor(1.0)}
    assert reduce_loss_dict(losses) == losses


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.cuda
def test_no_host_sync_between_the_lines(tmp_path):
    """torch itself reports every synchronising call; between two lines there must be none."""
    model = TinyDetector().cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    batch = TinyLoader(1).make(1)
    pinned = (batch[0].pin_memory(), [target.pin_memory() for target in batch[1]], batch[2])

    class Loader(object):
        def __len__(self):
            return 12

        def __iter__(self):
            for number in range(12):
                torch.cuda.set_sync_debug_mode("error" if 2 <= number < 9 else "default")
                yield pinned
            torch.cuda.set_sync_debug_mode("default")

    from fcos_core.utils.checkpoint import Checkpointer

    try:
        do_train(
            model, Loader(), optimizer, scheduler, Checkpointer(model), torch.device("cuda"), 100, {"iteration": 0},
            report=TrainingReport(12, "", log_period=12),
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
