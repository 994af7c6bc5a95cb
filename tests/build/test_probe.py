"""Asking packages about themselves, in processes that may die."""

import sys
import textwrap

import pytest

from fcos_core.build import probe

MODULES = {
    "fine": "__version__ = '1.2'\nprint('hello from the import')",
    "missing_dependency": "import no_such_module_at_all",
    "raising": "raise ValueError('numpy.dtype size changed\\nmore')",
    "leaving": "raise SystemExit(3)",
    "dying": "import os; os._exit(7)",
    "crashing": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "vanishing": "import os; os._exit(0)",
    "hanging": "import time; time.sleep(600)",
}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / (name + ".py")).write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))


def test_each_is_asked_whatever_happened_before(modules):
    names = ["dying", "fine", "raising", "vanishing", "leaving", "missing_dependency"]
    answers = probe.ask(names)
    assert list(answers) == names
    assert answers["fine"] == {"version": "1.2"}
    assert answers["dying"] == {"error": "the process ended with code 7", "unanswered": False}
    assert answers["vanishing"]["error"] == "the process ended"
    assert answers["raising"] == {"error": "ValueError: numpy.dtype size changed"}
    assert answers["leaving"] == {"error": "SystemExit: 3"}
    assert answers["missing_dependency"] == {"error": "ModuleNotFoundError: No module named 'no_such_module_at_all'"}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_crash_is_told_by_its_signal(modules):
    assert probe.ask(["crashing", "fine"])["crashing"]["error"] == "the process was ended by signal 11"


def test_one_that_hangs_is_given_up(modules):
    answers = probe.ask(["hanging", "fine"], seconds=3.0)
    assert answers["hanging"] == {"error": "no answer within 3 s", "unanswered": True}
    assert answers["fine"] == {"version": "1.2"}


def test_torch_says_what_it_is():
    torch = pytest.importorskip("torch")
    found = probe.ask([probe.TORCH])[probe.TORCH]
    assert found["version"] == torch.__version__ and found["cuda"] == torch.version.cuda
    assert found["numpy_error"] == "" and len(found["gpus"]) == torch.cuda.device_count()


def test_errors_in_one_line():
    assert probe.one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert probe.one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(probe.one_line(ValueError("x" * 1000))) == 500
