"""python -m fcos_core.doctor, as a user runs it, here and in environments where things are broken."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from fcos_core import doctor
from fcos_core.build import facts, probe
from fcos_core.build.facts import Driver
from tests.build.machines import RTX3060, machine
from tests.build.test_diagnose import SITUATIONS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def few_packages(monkeypatch):
    """Ask about two small ones only: the others take seconds to import."""
    packages = {name: facts.PACKAGES[name] for name in ("numpy", "yacs")}
    monkeypatch.setattr(facts, "PACKAGES", packages)


def test_here():
    """This machine can train: the whole report, with the self-test."""
    pytest.importorskip("torch")
    path = os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-m", "fcos_core.doctor", "--cpu"],
        env=dict(os.environ, PYTHONPATH=path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output = result.stdout.decode()
    assert result.returncode == 0, output
    for words in ("Python ", "torch ", "C++ compiler ", "operators ", "Training works on the CPU", "nms", "ms again"):
        assert words in output
    assert "FAILED" not in output and output.splitlines()[-1].startswith("self-test: ")


def test_json(few_packages, capsys):
    pytest.importorskip("torch")
    assert doctor.main(["--json", "--cpu", "--no-self-test"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"]["works"] is True and report["self_test"] == []
    assert report["facts"]["executable"] == sys.executable
    assert {finding["weight"] for finding in report["findings"]} <= {"limits", "note"}


@pytest.fixture
def broken(few_packages, tmp_path, monkeypatch):
    """Put a broken module first on the search path."""

    def put(name, text):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(str(tmp_path))

    return put


@pytest.mark.parametrize(
    "text, words",
    [
        ("raise OSError('libcudart.so.10.2: cannot open shared object file')", "libcudart.so.10.2"),
        ("raise ImportError('libc10.so: undefined symbol: _ZN3c10')", "undefined symbol"),
        ("import os; os._exit(9)", "the process ended with code 9"),
    ],
)
def test_torch_that_cannot_be_imported(broken, capsys, text, words):
    broken("torch", text)
    assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert "STOPS   torch-broken" in output and words in output and "self-test" not in output
    last = output.strip().splitlines()[-1]
    assert last.startswith("Training would not work: torch is installed but importing it fails")


def test_no_torch_at_all(monkeypatch, capsys):
    monkeypatch.setattr(facts, "torch_folder", lambda: None)
    assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert "torch-missing" in output and "python -m pip install torch" in output and "self-test" not in output


def test_broken_numpy_is_told_beside_the_rest(broken, capsys):
    broken("numpy", "raise ImportError('numpy.core.multiarray')")
    assert doctor.main(["--no-self-test"]) == 1
    output = capsys.readouterr().out
    assert "importing numpy fails (ImportError: numpy.core.multiarray)" in output and "C++ compiler" in output


def test_it_needs_nothing_but_python():
    """No site-packages at all."""
    environment = dict(os.environ, PYTHONPATH=ROOT)
    command = [sys.executable, "-S", "-m", "fcos_core.doctor", "--no-self-test"]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)
    assert result.returncode == 1 and b"torch-missing" in result.stdout and b"Traceback" not in result.stderr


def test_the_text_of_every_situation(monkeypatch, capsys):
    """Any facts can be printed, and the exit code is that of the verdict."""
    monkeypatch.setattr(doctor, "self_test", lambda devices, print_row: [])
    for name in sorted(SITUATIONS):
        known, (weight, finding, ), cause, _ = SITUATIONS[name]
        monkeypatch.setattr(facts, "collect", lambda known=known: known)
        for options in ([], ["--json"], ["--cpu", "--no-self-test"]):
            code = doctor.main(options)
            output = capsys.readouterr().out
            assert finding in output, name
            if options != ["--cpu", "--no-self-test"]:
                assert code == (1 if weight == "stops" else 0), name


def test_facts_that_a_report_needs(monkeypatch, capsys):
    known = machine(driver=Driver("535.183.01", (12, 2), (RTX3060,)), environ={"MAX_JOBS": "2"})
    monkeypatch.setattr(facts, "collect", lambda: known)
    assert doctor.main(["--no-self-test"]) == 0
    output = capsys.readouterr().out
    for words in (
        "2.4.1+cu121 (CUDA 12.1, old C++ ABI)",
        "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90",
        "535.183.01 (serves CUDA up to 12.2)",
        "NVIDIA GeForce RTX 3060, sm_86, 12288 MB",
        "CUDA 12.1 in /usr/local/cuda-12.1 (usual place) <- a build takes this one",
        "gcc 11.4; nvcc takes gcc up to 12, clang up to 15",
        "1.11.1 (/usr/bin/ninja)",
        "/cache/_ext.so (CUDA kernels for 86+PTX, compiled by g++ 11.4.0)",
        "numpy 1.26.4",
        "'2': compilers at a time",
        "no findings",
    ):
        assert words in output, words


ROW = {"op": "nms", "device": "cuda:0", "first": 1.0, "again": 0.5, "error": "", "remark": ""}


def said(monkeypatch, *lines):
    monkeypatch.setattr(probe, "lines", lambda command, seconds, stderr: iter(lines))
    return doctor.self_test(["cpu", "cuda:0"])


def test_a_crash_or_hang_of_an_operator_is_its_row(monkeypatch):
    running = {"running": "nms", "device": "cuda:0"}
    assert said(monkeypatch, running, ROW, {"ended": "", "late": False}) == [ROW]
    (row,) = said(monkeypatch, running, {"ended": "the process was ended by signal 11", "late": False})
    assert (row["op"], row["device"], row["error"]) == ("nms", "cuda:0", "the process was ended by signal 11")
    rows = said(monkeypatch, running, ROW, {"ended": "the process ended with code 1", "late": False})
    assert rows[0] == ROW and rows[1]["op"] == "the self-test" and rows[1]["error"]


def test_a_failing_operator_is_the_verdict(monkeypatch, capsys):
    monkeypatch.setattr(facts, "collect", machine)
    monkeypatch.setattr(doctor, "self_test", lambda devices, print_row: [dict(ROW, error="expected [0, 2], got [0]")])
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "self-test: 0 of 1 passed" in lines
    assert lines[-1].startswith("Training would not work: nms failed on cuda:0: expected [0, 2], got [0]; build the")


def test_which_devices_are_tested():
    known = machine(torch={"gpus": (RTX3060, RTX3060)})
    assert doctor._devices(known, False) == ["cpu", "cuda:0", "cuda:1"]
    assert doctor._devices(known, True) == ["cpu"]
