"""The install story, step by step: what once went wrong for people, and the tests that bring each step about.

`ROWS` names the tests of each step; those that no other file has are below.
"""

import ast
import os
import re
import subprocess
import sys

import pytest

from fcos_core.build import diagnose, ensure_extension, releases, sources
from tests.build.machines import machine
from tests.build.test_ensure_extension import package  # noqa: F401

ROOT = os.path.dirname(sources.PACKAGE_DIR)

# step -> what went wrong, and the tests that provoke it
ROWS = {
    1: (
        "which CUDA was torch built with?",
        "tests/test_doctor.py::test_here",
        "tests/test_doctor.py::test_facts_that_a_report_needs",
        "tests/test_doctor.py::test_it_needs_nothing_but_python",
        "tests/build/test_diagnose.py::test_all_is_well",
    ),
    2: (
        "ImportError: cannot import name '_C'",
        "tests/build/test_import.py::test_compiled_functions_are_reached_through_the_package",
        "tests/build/test_ensure_extension.py::test_any_other_is_left_alone_and_one_is_built",
        "tests/build/test_ensure_extension.py::test_missing_compiler_is_named_with_what_to_install",
        "tests/build/test_first_use.py::test_eight_processes_build_once",
        "tests/build/test_rows.py::test_importing_everything_compiles_nothing",
        "tests/build/test_ensure_extension.py::test_the_package_folder_is_not_written_to",
        "tests/layers/test_fallback.py::test_without_a_compiler_everything_runs",
        "tests/layers/test_fallback.py::test_a_build_that_fails_is_told_once",
    ),
    3: (
        "the detected CUDA version (10.2) mismatches (11.3)",
        "tests/build/test_toolkits.py::test_nearest_of_the_same_major_version",
        "tests/build/test_toolkits.py::test_a_wrong_cuda_home_is_passed_over_aloud",
        "tests/build/test_toolkits.py::test_places_on_windows",
        "tests/build/test_toolkits.py::test_what_cannot_be_asked_for",
        "tests/build/test_diagnose.py::test_situation",
        "tests/build/test_ensure_extension.py::test_real_build_with_cuda_kernels",
    ),
    4: (
        "torch 1.10, cu102, Python 3.7",
        "tests/build/test_rows.py::test_every_file_is_python_37",
        "tests/build/test_rows.py::test_old_versions_are_declared",
        "tests/build/test_setup.py::test_metadata_for_an_old_setuptools_is_that_of_pyproject",
        "tests/build/test_torch_path.py::test_own_environment_taken_off_the_path_is_put_at_the_end",
        "tests/build/test_setup.py::test_dependencies_leave_the_torch_that_is_there_alone",
    ),
    5: (
        "env_vars.bat, CUDA_PATH, reboot",
        "tests/build/test_rows.py::test_a_build_leaves_the_environment_as_it_is",
        "tests/build/test_rows.py::test_there_is_no_script_to_run_first",
        "tests/build/test_toolkits.py::test_what_shells_leave_on_a_path",
        "tests/build/test_setup.py::test_clean_leaves_the_tree_as_cloned",
    ),
    6: (
        "LNK1181: cannot open input file ...ROIAlign_cpu.obj",
        "tests/build/test_rows.py::test_torch_edited_to_ninja_version",
        "tests/build/test_ensure_extension.py::test_objects_that_ninja_did_not_make_are_named_before_the_link",
        "tests/build/test_ensure_extension.py::test_build_helps_itself_without_ninja",
        "tests/build/test_sources.py::test_sources_are_relative_sorted_and_with_forward_slashes",
        "tests/build/test_sources.py::test_one_object_file_for_two_sources_is_refused",
        "tests/build/test_jobs.py::test_ninja_policy",
        "tests/build/test_facts.py::test_the_edit_of_torch_that_keeps_ninja_from_compiling",
    ),
    7: (
        "the debugger would not stop",
        "tests/build/test_rows.py::test_without_workers_all_data_is_read_in_this_process",
        "tests/build/test_rows.py::test_imports_leave_the_hooks_of_python_alone",
    ),
    8: (
        "THC/THC.h, THCudaCheck, THCCeilDiv",
        "tests/build/test_rows.py::test_sources_use_nothing_that_torch_removed",
    ),
    9: (
        "minor version mismatch",
        "tests/build/test_toolkits.py::test_nearest_of_the_same_major_version",
        "tests/build/test_diagnose.py::test_situation",
    ),
    10: (
        "AT_CHECK; then training froze: sm_86 was not in that torch",
        "tests/build/test_rows.py::test_sources_use_nothing_that_torch_removed",
        "tests/build/test_rows.py::test_test_and_demo_stop_where_torch_has_no_code_for_the_gpu",
        "tests/engine/test_run.py::test_gpu_that_torch_has_no_code_for_stops_before_the_model_is_built",
        "tests/utils/test_preflight.py::test_check_device_stops_or_warns",
        "tests/build/test_diagnose.py::test_which_code_runs_on_a_gpu",
    ),
    11: (
        "atomicAdd(c10::Half*), THCState, stale objects in build/",
        "tests/build/test_rows.py::test_kernels_own_their_atomics_and_memory",
        "tests/build/test_stamp.py::test_each_ingredient_makes_a_library_stale",
        "tests/build/test_ensure_extension.py::test_edited_sources_are_built_again",
        "tests/build/test_first_use.py::test_another_torch_gets_another_library",
    ),
    12: (
        "which versions go together?",
        "tests/build/test_docs.py::test_table_of_releases",
        "tests/build/test_docs.py::test_table_of_compilers",
        "tests/build/test_releases.py::test_newest_that_serves_python_gpu_and_driver",
        "tests/build/test_rows.py::test_the_torch_that_is_proposed_would_do",
    ),
    13: (
        "FCOS works, so ATSS works too",
        "tests/test_configs.py",
        "tests/build/test_rows.py::test_all_heads_share_one_library",
    ),
    14: (
        "a baseline today",
        "tests/build/test_rows.py::test_the_first_command_needs_no_data_of_the_user",
        "tests/engine/test_run.py::test_a_run_leaves_everything_behind",
    ),
}


def test_all_steps_are_here_and_their_tests_exist():
    assert sorted(ROWS) == list(range(1, 15))
    for row in ROWS.values():
        assert len(row) > 1
        for name in row[1:]:
            path, _, function = name.partition("::")
            with open(os.path.join(ROOT, path), encoding="utf-8") as stream:
                text = stream.read()
            assert not function or re.search(r"^def {}\(".format(function), text, re.MULTILINE), name


def python_files():
    yield os.path.join(ROOT, "setup.py")
    for top in ("fcos_core", "tools"):
        for folder, _, names in os.walk(os.path.join(ROOT, top)):
            for name in names:
                if name.endswith(".py"):
                    yield os.path.join(folder, name)


def source_files():
    for name in sources.find(os.path.join(ROOT, "csrc"), (".cpp", ".cu", ".h", ".cuh")):
        with open(os.path.join(ROOT, name), encoding="utf-8") as stream:
            # comments may tell of what is gone
            yield name, re.sub(r"//[^\n]*|/\*.*?\*/", "", stream.read(), flags=re.DOTALL)


# ---- 2


def test_importing_everything_compiles_nothing(tmp_path):
    """No compiler, no library, no cache: every part of the package can be imported."""
    script = (
        "import fcos_core, fcos_core._C, fcos_core.layers, fcos_core.modeling.detector, fcos_core.engine.run, "
        "fcos_core.engine.predictor, fcos_core.data; print('imported')"
    )
    path = os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])
    environment = dict(os.environ, PYTHONPATH=path, PATH="", CXX="no-such-compiler", FCOS_CORE_CACHE=str(tmp_path))
    output = subprocess.check_output([sys.executable, "-c", script], env=environment, cwd=str(tmp_path))
    assert output.decode().strip() == "imported" and os.listdir(str(tmp_path)) == []


# ---- 4


@pytest.mark.skipif(sys.version_info < (3, 8), reason="this is 3.7 itself")
def test_every_file_is_python_37():
    for path in python_files():
        with open(path, encoding="utf-8") as stream:
            ast.parse(stream.read(), path, feature_version=(3, 7))


def test_old_versions_are_declared():
    with open(os.path.join(ROOT, "pyproject.toml"), encoding="utf-8") as stream:
        text = stream.read()
    assert 'requires-python = ">=3.7"' in text and '"torch>=1.7"' in text
    known = machine(torch={"version": "1.10.2", "cuda": "10.2", "gpus": ()}, python=(3, 7, 16), driver=None, pci_gpus=0)
    assert diagnose.diagnose(known._replace(tools=known.tools._replace(toolkits=()))) == []


# ---- 5


def test_a_build_leaves_the_environment_as_it_is(package):  # noqa: F811
    before = dict(os.environ)
    ensure_extension()
    assert dict(os.environ) == before


def test_there_is_no_script_to_run_first():
    found = [name for _, _, names in os.walk(os.path.join(ROOT, "fcos_core")) for name in names]
    found += os.listdir(ROOT) + os.listdir(os.path.join(ROOT, "tools"))
    assert not [name for name in found if name.endswith((".bat", ".ps1", ".cmd"))]


# ---- 6

EDIT = '''
import importlib.machinery

# torch's own file stays as it is: it is read with the edit
loader = importlib.machinery.SourceFileLoader
get_data, path_stats = loader.get_data, loader.path_stats
mine = ("torch/utils/cpp_extension.py", "torch\\\\utils\\\\cpp_extension.py")

def edited(self, path):
    data = get_data(self, path)
    if str(path).endswith(mine):
        assert b"['ninja', '-v']" in data
        data = data.replace(b"['ninja', '-v']", b"['ninja', '--version']")
    return data

def without_cache(self, path):
    if str(path).endswith(mine):
        raise OSError("read the source")
    return path_stats(self, path)

loader.get_data, loader.path_stats = edited, without_cache
'''


def test_torch_edited_to_ninja_version(package, tmp_path, monkeypatch):  # noqa: F811
    """The real thing: ninja runs, prints its version and compiles nothing; the build gets there all the same."""
    from fcos_core.build import jobs

    if jobs.find_working_ninja() is None:
        pytest.skip("no ninja")
    (tmp_path / "sitecustomize.py").write_text(EDIT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FCOS_CORE_NINJA", "1")
    with pytest.raises(RuntimeError, match="expected every source to leave an object file.*was edited from 'ninja -v'"):
        ensure_extension()
    monkeypatch.delenv("FCOS_CORE_NINJA")
    assert os.path.isfile(ensure_extension())


# ---- 7


def test_without_workers_all_data_is_read_in_this_process(tmp_path, monkeypatch):
    from fcos_core.data import make_data_loader
    from tests.engine.own_data import config, write_data

    data = write_data(tmp_path / "data", [1, 1, 1, 1])
    cfg, _ = config(data, tmp_path / "run", DATALOADER__NUM_WORKERS=0)
    loader = make_data_loader(cfg, True, False, 0)
    assert loader.num_workers == 0
    processes = []
    kind = type(loader.dataset)
    read = kind.__getitem__
    monkeypatch.setattr(kind, "__getitem__", lambda self, index: processes.append(os.getpid()) or read(self, index))
    next(iter(loader))
    assert set(processes) == {os.getpid()}


def test_imports_leave_the_hooks_of_python_alone():
    script = (
        "import sys, signal, torch, numpy\n"
        "state = lambda: (sys.excepthook, sys.gettrace(), sys.getprofile(), sys.breakpointhook, sys.displayhook,"
        " signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))\n"
        "before = state()\n"
        "import fcos_core.engine.run, fcos_core.engine.run_test, fcos_core.engine.predictor, fcos_core.layers\n"
        "print(state() == before)"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")]))
    assert subprocess.check_output([sys.executable, "-c", script], env=environment).decode().strip() == "True"


# ---- 8, 10, 11


def test_sources_use_nothing_that_torch_removed():
    gone = re.compile(r"THC/THC|THCState|THCudaCheck|THCCeilDiv|THCuda(Malloc|Free)|\bAT_CHECK\b|\.type\(\)\s*,\s*\"")
    found = [(name, gone.search(text).group(0)) for name, text in source_files() if gone.search(text)]
    assert found == []


def test_kernels_own_their_atomics_and_memory():
    """Torch's atomics moved with its versions, and its allocator's functions changed; kernel.h has what is needed."""
    foreign = re.compile(r"gpuAtomicAdd|THCAtomics|Atomic\.cuh|CUDACachingAllocator|raw_alloc|\bcudaMalloc\b")
    found = [(name, foreign.search(text).group(0)) for name, text in source_files() if foreign.search(text)]
    assert found == []
    for name, text in source_files():
        if name.endswith((".cu", ".cuh")):
            assert not re.search(r"#include\s*[<\"](?:torch|ATen|c10)/", text), name


@pytest.fixture
def checkpoint(tmp_path):
    import torch

    from fcos_core.modeling.detector import build_detection_model
    from tests.thin import thin_config

    cfg = thin_config("DATASETS.TEST", ("shapes_val",))
    content = {"model": build_detection_model(cfg).state_dict(), "config": cfg.dump(), "categories": ["cat", "dog"]}
    torch.save(content, str(tmp_path / "model_final.pth"))
    return str(tmp_path / "model_final.pth")


@pytest.mark.parametrize("tool", ["test_net", "demo"])
def test_test_and_demo_stop_where_torch_has_no_code_for_the_gpu(tool, checkpoint, tmp_path, monkeypatch, capsys):
    import torch

    from tests.tools.test_train_net import tool as load
    from tests.utils.test_preflight import CU102, pretend_gpus

    pretend_gpus(monkeypatch, 1, (8, 6), CU102)
    monkeypatch.setattr(torch.version, "cuda", "10.2")
    if tool == "test_net":
        arguments = ["MODEL.WEIGHT", checkpoint, "MODEL.DEVICE", "cuda", "OUTPUT_DIR", str(tmp_path / "run")]
    else:
        arguments = ["--input", "a.jpg", "--weights", checkpoint, "--device", "cuda"]
    assert load(tool).main(arguments) == 1
    printed = capsys.readouterr().out
    assert "has no code for this GPU (sm_86); python -m pip install" in printed and "Traceback" not in printed


# ---- 12


@pytest.mark.parametrize("python", [(3, minor) for minor in range(7, 16)])
@pytest.mark.parametrize("gpu", [70, 75, 80, 86, 89, 90, 120])
@pytest.mark.parametrize("driver_cuda", [None, (11, 4), (12, 2), (13, 0)])
def test_the_torch_that_is_proposed_would_do(python, gpu, driver_cuda):
    """Nobody is sent from one wrong torch to another."""
    release = releases.best(python, gpu, driver_cuda)
    if release is None:
        return
    names = ["sm_{}".format(number) for number in release.archs]
    assert diagnose.gpu_code(gpu, names, release.version, release.cuda, python, driver_cuda) is None
    assert release.pythons[0] <= python[1] <= release.pythons[1]
    assert driver_cuda is None or int(release.cuda.split(".")[0]) <= driver_cuda[0]


# ---- 13, 14


def test_all_heads_share_one_library():
    """No head has compiled code of its own: where one works, all do."""
    heads = os.path.join(ROOT, "fcos_core", "modeling", "rpn")
    assert "fcos" in os.listdir(heads)
    for folder, _, names in os.walk(heads):
        for name in names:
            if name.endswith(".py"):
                with open(os.path.join(folder, name), encoding="utf-8") as stream:
                    text = stream.read()
                assert "load_library" not in text and "cpp_extension" not in text and "torch.ops." not in text, name


def test_the_first_command_needs_no_data_of_the_user():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as stream:
        command = stream.read().split("<!-- command: quickstart -->")[1].split("```")[1]
    from fcos_core.config import load_config

    cfg, _ = load_config(os.path.join(ROOT, re.search(r"configs/\S+", command).group(0)))
    assert all(name.startswith("shapes_") for name in tuple(cfg.DATASETS.TRAIN) + tuple(cfg.DATASETS.TEST))
    assert cfg.MODEL.WEIGHT == "" and cfg.MODEL.DEVICE in ("auto", "cpu")
