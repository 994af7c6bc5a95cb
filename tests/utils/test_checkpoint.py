"""Checkpoints: atomic, safe to read, resume against start from weights, fall-back."""
import os
import pickle
import random

import numpy as np
import pytest
import torch

from fcos_core.config import cfg as default_cfg
from fcos_core.utils import checkpoint as checkpoint_module
from fcos_core.utils.checkpoint import Checkpointer, DetectronCheckpointer, read_checkpoint, remove_solver_states
from fcos_core.utils.rng import get_rng_state, seed_everything, set_rng_state
from fcos_core.utils.safe_pickle import UNSAFE_SWITCH, CorruptFileError, UnsafeFileError, load_pickle


def make_run(folder, value=0.0):
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, value)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    return Checkpointer(model, optimizer, scheduler, str(folder), True)


def train_a_step(run):
    run.model(torch.ones(1, 2)).sum().backward()
    run.optimizer.step()
    run.scheduler.step()


def cut_in_half(path):
    size = os.path.getsize(path)
    with open(path, "r+b") as stream:
        stream.truncate(size // 2)


def test_resume_restores_everything_and_returns_the_rest(tmp_path):
    run = make_run(tmp_path, 1.0)
    train_a_step(run)
    run.save("model_0000001", iteration=1, categories=["a", "b"], config="X: 1\n", rng=[get_rng_state()])
    again = make_run(tmp_path, 5.0)
    rest = again.load("weights that are not looked for")
    assert sorted(rest) == ["categories", "config", "iteration", "rng"] and rest["categories"] == ["a", "b"]
    assert torch.equal(again.model.weight, run.model.weight)
    momentum = [state["momentum_buffer"] for state in again.optimizer.state.values()]
    assert len(momentum) == 2 and all(torch.any(buffer != 0) for buffer in momentum)
    assert again.scheduler.last_epoch == 1
    with open(str(tmp_path / "last_checkpoint")) as stream:
        assert stream.read() == str(tmp_path / "model_0000001.pth")


def test_starting_from_weights_takes_model_tensors_only(tmp_path):
    run = make_run(tmp_path / "first", 1.0)
    train_a_step(run)
    run.save("model_final", iteration=90000)
    weights = str(tmp_path / "first" / "model_final.pth")
    other = make_run(tmp_path / "second", 5.0)
    assert other.load(weights) == {}
    assert torch.equal(other.model.weight, run.model.weight)
    assert not other.optimizer.state and other.scheduler.last_epoch == 0
    assert other.load(weights, resume=True)["iteration"] == 90000 and other.scheduler.last_epoch == 1


def test_weights_can_be_asked_for_where_there_is_something_to_resume(tmp_path):
    run = make_run(tmp_path, 1.0)
    run.save("model_0000001", iteration=1)
    torch.save(torch.nn.Linear(2, 2).state_dict(), str(tmp_path / "bare.pth"))
    assert run.load(str(tmp_path / "bare.pth"), resume=False) == {}
    assert not torch.all(run.model.weight == 1.0)


def test_nothing_to_load(tmp_path):
    run = make_run(tmp_path, 2.0)
    assert not run.has_checkpoint() and run.get_checkpoint_file() == ""
    assert run.load() == {} and run.load("") == {}


def test_only_the_writing_process_writes(tmp_path):
    model = torch.nn.Linear(1, 1)
    Checkpointer(model, save_dir=str(tmp_path), save_to_disk=False).save("x")
    Checkpointer(model, save_dir="", save_to_disk=True).save("x")
    assert os.listdir(str(tmp_path)) == []


def test_wrapped_model_is_saved_without_prefix(tmp_path):
    run = make_run(tmp_path)
    Checkpointer(torch.nn.DataParallel(run.model), save_dir=str(tmp_path), save_to_disk=True).save("x")
    assert sorted(read_checkpoint(str(tmp_path / "x.pth"))["model"]) == ["bias", "weight"]


def test_truncated_newest_falls_back_with_a_warning(tmp_path, caplog):
    run = make_run(tmp_path, 1.0)
    run.save("model_0000001", iteration=1)
    torch.nn.init.constant_(run.model.weight, 2.0)
    run.save("model_0000002", iteration=2)
    for number, name in enumerate(("model_0000001", "model_0000002")):
        os.utime(str(tmp_path / (name + ".pth")), (1000 + number, 1000 + number))
    cut_in_half(str(tmp_path / "model_0000002.pth"))
    again = make_run(tmp_path)
    assert again.load()["iteration"] == 1 and torch.all(again.model.weight == 1.0)
    assert "model_0000002.pth" in caplog.text and "cut off" in caplog.text


def test_fall_back_takes_the_newest_that_is_whole(tmp_path):
    run = make_run(tmp_path)
    for number in (1, 2, 3):
        run.save(f"model_{number}", iteration=number)
        os.utime(str(tmp_path / f"model_{number}.pth"), (1000 + number, 1000 + number))
    torch.save({"unrelated": torch.ones(1)}, str(tmp_path / "nonfinite_0000003_rank0.pth"))
    os.remove(str(tmp_path / "model_3.pth"))
    assert make_run(tmp_path).load()["iteration"] == 2


def test_no_readable_checkpoint_is_an_error_not_a_new_start(tmp_path):
    make_run(tmp_path).save("model_1", iteration=1)
    cut_in_half(str(tmp_path / "model_1.pth"))
    with pytest.raises(CorruptFileError, match="last_checkpoint"):
        make_run(tmp_path).load()


def test_moved_folder_still_resumes(tmp_path):
    make_run(tmp_path / "old").save("model_1", iteration=1)
    os.rename(str(tmp_path / "old"), str(tmp_path / "new"))
    assert make_run(tmp_path / "new").load()["iteration"] == 1


def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    run = make_run(tmp_path, 1.0)
    run.save("model_final", iteration=1)

    def broken_save(data, stream):
        stream.write(b"PK half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint_module.torch, "save", broken_save)
    with pytest.raises(OSError):
        run.save("model_final", iteration=2)
    monkeypatch.undo()
    assert make_run(tmp_path).load()["iteration"] == 1
    assert sorted(os.listdir(str(tmp_path))) == ["last_checkpoint", "model_final.pth"]


class Evil(object):
    """Pickles into a call of os.mkdir."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zip_format", [True, False])
def test_foreign_code_is_refused_unless_switched_on(tmp_path, monkeypatch, zip_format):
    path, proof = str(tmp_path / "evil.pth"), str(tmp_path / "proof")
    torch.save({"model": {}, "x": Evil(proof)}, path, _use_new_zipfile_serialization=zip_format)
    monkeypatch.delenv(UNSAFE_SWITCH, raising=False)
    with pytest.raises(UnsafeFileError, match=UNSAFE_SWITCH):
        read_checkpoint(path)
    assert not os.path.exists(proof)
    monkeypatch.setenv(UNSAFE_SWITCH, "1")
    read_checkpoint(path)
    assert os.path.isdir(proof)


def test_foreign_code_in_a_pickle_is_refused(tmp_path):
    path, proof = str(tmp_path / "evil.pkl"), str(tmp_path / "proof")
    with open(path, "wb") as stream:
        pickle.dump({"blobs": Evil(proof)}, stream, protocol=2)
    with pytest.raises(UnsafeFileError):
        load_pickle(path)
    assert not os.path.exists(proof)
    with open(path, "wb") as stream:
        pickle.dump({"w": np.ones(3, np.float32), "lr": np.float64(0.5)}, stream, protocol=2)
    assert load_pickle(path)["w"].tolist() == [1, 1, 1]
    cut_in_half(path)
    with pytest.raises(CorruptFileError):
        load_pickle(path)


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 10, 100, 0.5, -5])
def test_cut_files_are_called_corrupt(tmp_path, zip_format, kept):
    path = str(tmp_path / "x.pth")
    torch.save({"model": torch.nn.Linear(9, 9).state_dict()}, path, _use_new_zipfile_serialization=zip_format)
    assert read_checkpoint(path)["model"]["weight"].shape == (9, 9)
    size = os.path.getsize(path)
    with open(path, "r+b") as stream:
        stream.truncate(int(size * kept) if kept == 0.5 else kept if kept >= 0 else size + kept)
    with pytest.raises(CorruptFileError):
        read_checkpoint(path)


def test_old_style_checkpoint_with_prefix_loads(tmp_path):
    model = torch.nn.Linear(2, 2)
    state = {"module." + name: value for name, value in model.state_dict().items()}
    old = {"model": state, "optimizer": {"state": {}, "param_groups": []}, "scheduler": {}, "iteration": 7}
    torch.save(old, str(tmp_path / "old.pth"), _use_new_zipfile_serialization=False)
    run = make_run(tmp_path / "new")
    assert run.load(str(tmp_path / "old.pth")) == {}
    assert torch.equal(run.model.weight, model.weight)


def test_remove_solver_states(tmp_path):
    run = make_run(tmp_path, 3.0)
    run.save("model_final", iteration=5, categories=["a"], rng=[get_rng_state()])
    path, removed = remove_solver_states(str(tmp_path / "model_final.pth"))
    assert path == str(tmp_path / "model_final_wo_solver_states.pth")
    assert removed == ["optimizer", "scheduler", "iteration", "rng"]
    left = read_checkpoint(path)
    assert sorted(left) == ["categories", "model"] and torch.all(left["model"]["weight"] == 3.0)
    assert remove_solver_states(path)[1] == []  # nothing left to remove is no error


def test_catalog_names_and_missing_files(tmp_path):
    weights = tmp_path / "w.pth"
    torch.save(torch.nn.Linear(2, 2).state_dict(), str(weights))
    catalog = tmp_path / "my_catalog.py"
    catalog.write_text(
        "class ModelCatalog(object):\n    @staticmethod\n    def get(name):\n"
        f"        return {{'mine': {str(weights)!r}}}[name]\n"
    )
    cfg = default_cfg.clone()
    cfg.PATHS_CATALOG = str(catalog)
    run = DetectronCheckpointer(cfg, torch.nn.Linear(2, 2))
    assert run.load("catalog://mine") == {}
    assert torch.equal(run.model.weight, read_checkpoint(str(weights))["model"]["weight"])
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHT"):
        run.load(str(tmp_path / "none.pth"))


def draw():
    numbers = np.random.rand(), np.random.randn()  # noqa: NPY002
    return [random.random(), float(numbers[0]), float(numbers[1]), float(torch.rand(1))]


def test_random_states_survive_a_safe_file(tmp_path):
    seed_everything(3)
    draw()  # leaves NumPy with a cached second normal number
    torch.save({"model": {}, "rng": get_rng_state()}, str(tmp_path / "x.pth"))
    expected = [draw(), draw()]
    seed_everything(4)
    set_rng_state(read_checkpoint(str(tmp_path / "x.pth"))["rng"])
    assert [draw(), draw()] == expected
