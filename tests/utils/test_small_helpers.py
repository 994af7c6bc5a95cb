"""Registry, imports, environment module, timer, logger, metric logger, files, environment report."""
import logging
import os
import sys

import pytest
import torch

from fcos_core.utils import env
from fcos_core.utils.collect_env import collect_env_info, get_pil_version
from fcos_core.utils.imports import import_file
from fcos_core.utils.logger import setup_logger
from fcos_core.utils.metric_logger import MetricLogger, SmoothedValue
from fcos_core.utils.miscellaneous import mkdir, write_atomically
from fcos_core.utils.registry import Registry
from fcos_core.utils.timer import Timer, get_time_str


def test_registry_by_decorator_and_call():
    registry = Registry()

    @registry.register("one")
    def one():
        return 1

    two = registry.register("two", lambda: 2)
    assert registry["one"]() == 1 and registry["two"] is two and sorted(registry) == ["one", "two"]


def test_registry_refuses_a_name_twice_and_lists_the_known():
    registry = Registry(a=1)
    with pytest.raises(AssertionError, match="'a'"):
        registry.register("a", 2)
    with pytest.raises(KeyError, match="expected one of a"):
        registry["b"]
    assert registry.get("b") is None


def test_import_file(tmp_path):
    path = tmp_path / "settings.py"
    path.write_text("VALUE = 3\n")
    assert import_file("some_settings", str(path)).VALUE == 3
    assert "some_settings" not in sys.modules
    import_file("some_settings", str(path), make_importable=True)
    assert sys.modules.pop("some_settings").VALUE == 3
    with pytest.raises(ImportError, match="notes.txt"):
        import_file("notes", str(tmp_path / "notes.txt"))


def test_environment_module_runs_once(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text("import os\ndef setup_environment():\n    os.environ['SEEN'] = os.environ.get('SEEN', '') + 'x'\n")
    monkeypatch.setenv("TORCH_DETECTRON_ENV_MODULE", str(path))
    monkeypatch.setenv("SEEN", "")
    monkeypatch.setattr(env, "_done", False)
    env.setup_environment()
    env.setup_environment()
    assert os.environ["SEEN"] == "x"
    path.write_text("pass\n")
    with pytest.raises(ValueError, match="setup_environment"):
        env.setup_custom_environment(str(path))


def test_timer_adds_up():
    timer = Timer()
    assert timer.average_time == 0
    timer.add(1.0)
    timer.add(3.0)
    assert (timer.average_time, timer.calls, timer.diff) == (2.0, 2, 3.0)
    assert timer.avg_time_str() == "0:00:02" and get_time_str(61) == "0:01:01"
    timer.tic()
    assert timer.toc(average=False) >= 0 and timer.calls == 3


def test_logger_writes_to_file_and_terminal_once(tmp_path, capsys):
    for _ in range(2):  # a second call must not double the lines
        setup_logger("fcos_core_test", str(tmp_path / "run"), 0)
    logging.getLogger("fcos_core_test.part").info("a line")
    assert capsys.readouterr().out.count("a line") == 1
    assert (tmp_path / "run" / "log.txt").read_text().count("a line") == 1
    setup_logger("fcos_core_test", str(tmp_path / "other"), 1).info("from another process")
    assert "another" not in capsys.readouterr().out and not (tmp_path / "other").exists()


def test_smoothed_value_statistics():
    value = SmoothedValue(window_size=3)
    for number in (9.0, 1.0, 4.0, 2.0):
        value.update(number)
    assert (value.median, value.avg, value.global_avg, value.count) == (2.0, pytest.approx(7 / 3), 4.0, 4)


def test_smoothed_value_takes_tensors_in_order():
    value = SmoothedValue(window_size=2)
    value.update(torch.tensor([1.0], requires_grad=True))
    value.update(2.0)
    value.update(torch.tensor(5.0))
    assert list(value.deque) == [2.0, 5.0] and value.global_avg == pytest.approx(8 / 3) and value.count == 3


def test_metric_logger_attributes_and_text():
    meters = MetricLogger(delimiter="  ")
    meters.update(loss=1.0, lr=2)
    meters.update(loss=torch.tensor(3.0))
    assert meters.loss.global_avg == 2.0
    assert str(meters) == "loss: 1.0000 (2.0000)  lr: 2.0000 (2.0000)"
    with pytest.raises(AttributeError, match="accuracy"):
        _ = meters.accuracy
    with pytest.raises(AssertionError, match="loss"):
        meters.update(loss="high")


def test_atomic_write_replaces_or_leaves(tmp_path):
    path = str(tmp_path / "file")
    write_atomically(path, lambda stream: stream.write(b"old"))

    def fail(stream):
        stream.write(b"half of the new")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(path, fail)
    with open(path, "rb") as stream:
        assert stream.read() == b"old"
    assert os.listdir(str(tmp_path)) == ["file"]
    mkdir(str(tmp_path / "a" / "b"))
    mkdir(str(tmp_path / "a" / "b"))


def test_environment_report_names_versions():
    text = collect_env_info()
    assert torch.__version__ in text and get_pil_version() in text and "GPU" in text
