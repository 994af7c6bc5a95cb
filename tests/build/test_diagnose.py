"""Each situation that a user can be in, brought about by facts alone: what the doctor says, and what to type."""

import pytest

from fcos_core.build import arch, diagnose, hostcc
from fcos_core.build.facts import Driver, Gpu, Package
from fcos_core.build.findings import LIMITS, NOTE, STOPS
from fcos_core.build.toolkits import Toolkit
from tests.build.machines import CU102, CUDA_12_1, RTX3060, machine

UNBUILT = {"path": "", "kernels": "", "reason": "missing"}
CPU_KERNELS = {"kernels": "cpu", "plan": "no toolkit"}
CPU_TORCH = {"version": "2.4.1+cpu", "cuda": None, "archs": (), "gpus": ()}
EDITED_NINJA = {"ninja_edited": True}
LOST_LIBRARY = "OSError: libcudart.so.10.2: cannot open shared object file"
PTX = CU102 + ("compute_70",)

# name -> facts, weight and name of the gravest finding, words of its cause, words of its remedy
SITUATIONS = {
    "no torch": (
        machine(torch=None, library=None)._replace(torch=None, library=None),
        (STOPS, "torch-missing"),
        "no torch in the environment of /env/bin/python",
        "pip install torch==2.10.0 torchvision --index-url https://download.pytorch.org/whl/cu128",
    ),
    "torch without its libraries": (
        machine(torch={"version": "", "error": LOST_LIBRARY}),
        (STOPS, "torch-broken"),
        "importing it fails (OSError: libcudart.so.10.2",
        "python -m pip install --force-reinstall torch==2.10.0",
    ),
    "torch behind other CUDA libraries": (
        machine(torch={"version": "", "error": LOST_LIBRARY}, environ={"LD_LIBRARY_PATH": "/usr/local/cuda/lib64"}),
        (STOPS, "torch-broken"),
        "importing it fails (OSError: libcudart.so.10.2",
        "unset LD_LIBRARY_PATH (other CUDA libraries are loaded first); if that is not it, python -m pip install",
    ),
    "torch without the runtime of Visual C++": (
        machine(torch={"version": "", "error": 'OSError: [WinError 126] Error loading "C:\\torch\\lib\\shm.dll"'}),
        (STOPS, "torch-broken"),
        "WinError 126",
        "vc_redist.x64.exe",
    ),
    "torch of a newer system": (
        machine(torch={"version": "", "error": "ImportError: /lib/libc.so.6: version `GLIBC_2.28' not found"}),
        (STOPS, "torch-broken"),
        "GLIBC_2.28",
        "install an older torch",
    ),
    "torch without a module": (
        machine(torch={"version": "", "error": "ModuleNotFoundError: No module named 'typing_extensions'"}),
        (STOPS, "torch-broken"),
        "typing_extensions",
        "python -m pip install typing_extensions",
    ),
    "torch dies at import": (
        machine(torch={"version": "", "error": "the process was ended by signal 11"}),
        (STOPS, "torch-broken"),
        "signal 11",
        "pip install --force-reinstall torch==2.10.0",
    ),
    "torch does not answer": (
        machine(torch={"version": "", "error": "no answer within 180 s", "unanswered": True}),
        (STOPS, "torch-unanswering"),
        "did not answer within 180 s",
        "nvidia-smi",
    ),
    "old torch": (machine(torch={"version": "1.4.0"}), (STOPS, "torch-too-old"), "torch 1.4.0", "pip install"),
    "CPU torch beside a GPU": (
        machine(torch=CPU_TORCH),
        (STOPS, "torch-cpu-build"),
        "torch 2.4.1+cpu is a CPU build, but this machine has an NVIDIA GPU (NVIDIA GeForce RTX 3060)",
        "pip install --force-reinstall torch==2.10.0 torchvision --index-url https://download.pytorch.org/whl/cu128",
    ),
    "GPU without a driver": (
        machine(driver=None, torch={"gpus": ()}),
        (STOPS, "driver-missing"),
        "no driver answers",
        "install the NVIDIA driver",
    ),
    "driver older than torch": (
        machine(driver=Driver("450.80.02", (11, 0), (RTX3060,)), torch={"gpus": ()}),
        (STOPS, "driver-too-old"),
        "driver (450.80.02) serves CUDA up to 11.0, but this torch was built with CUDA 12.1",
        "update the driver, or install a torch for it: python -m pip install --force-reinstall torch==2.0.1",
    ),
    "GPUs hidden": (
        machine(torch={"gpus": ()}, environ={"CUDA_VISIBLE_DEVICES": ""}),
        (LIMITS, "gpu-hidden"),
        "CUDA_VISIBLE_DEVICES is ''",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "GPU out of order": (
        machine(torch={"gpus": (), "gpu_error": "UserWarning: CUDA initialization: CUDA unknown error"}),
        (STOPS, "gpu-unusable"),
        "that torch cannot use (UserWarning: CUDA initialization",
        "restart the machine",
    ),
    "sm_86 and no code for it": (
        machine(torch={"version": "1.10.2", "cuda": "10.2", "archs": CU102}, python=(3, 7, 16)),
        (STOPS, "gpu-without-code"),
        "torch 1.10.2 (CUDA 10.2, sm_37 sm_50 sm_60 sm_70) has no code for this GPU (sm_86)",
        "pip install --force-reinstall torch==1.13.1 torchvision --index-url https://download.pytorch.org/whl/cu117",
    ),
    "sm_86 and PTX only": (
        machine(torch={"version": "1.10.2", "cuda": "10.2", "archs": PTX}, tools={"toolkits": ()}),
        (LIMITS, "gpu-ptx-only"),
        "the first run compiles it for minutes",
        "torch==2.10.0",
    ),
    "a GPU that new torch left behind": (
        machine(torch={"archs": ("sm_75", "sm_86"), "gpus": (Gpu("GTX 1080", 61),)}),
        (STOPS, "gpu-without-code"),
        "no code for this GPU (sm_61)",
        "torch==2.7.1 torchvision --index-url https://download.pytorch.org/whl/cu126",
    ),
    "no toolkit": (
        machine(tools={"toolkits": ()}, library=CPU_KERNELS),
        (LIMITS, "toolkit-missing"),
        "no CUDA 12 toolkit for this torch, which was built with CUDA 12.1; found: none",
        "install CUDA 12.1 from https://developer.nvidia.com/cuda-toolkit-archive",
    ),
    "toolkit of another major version": (
        machine(tools={"toolkits": (Toolkit("/usr/local/cuda-10.2", (10, 2), "CUDA_HOME"),)}, library=CPU_KERNELS),
        (LIMITS, "toolkit-mismatch"),
        "found: CUDA 10.2 in /usr/local/cuda-10.2 (CUDA_HOME)",
        "install CUDA 12.1",
    ),
    "no toolkit for a torch with CUDA 13": (
        machine(torch={"cuda": "13.0"}, tools={"toolkits": ()}, library=CPU_KERNELS)._replace(driver=None, pci_gpus=0),
        (LIMITS, "toolkit-missing"),
        "no CUDA 13 toolkit",
        'install CUDA 13.0: on Linux python -m pip install "nvidia-cuda-nvcc==13.0.*"',
    ),
    "no compiler": (
        machine(tools={"compiler": ""}, library=UNBUILT),
        (LIMITS, "compiler-missing"),
        "no C++ compiler found",
        "sudo apt-get install g++",
    ),
    "compiler too old for torch": (
        machine(tools={"compiler": "g++ (GCC) 4.8.5 20150623 (Red Hat 4.8.5-44)"}, library=UNBUILT),
        (LIMITS, "compiler-too-old"),
        "gcc 4.8 is too old for the headers of torch 2.4.1+cu121, which need gcc 9 or newer",
        "CXX=g++-9",
    ),
    "setuptools without pkg_resources": (
        machine(torch={"version": "2.1.2"}, tools={"has_pkg_resources": False}, library=UNBUILT),
        (LIMITS, "setuptools-too-new"),
        "needs pkg_resources",
        'pip install "setuptools<81"',
    ),
    "no setuptools": (
        machine(tools={"setuptools": ""}, library=UNBUILT),
        (LIMITS, "setuptools-missing"),
        "no setuptools",
        "pip install",
    ),
    "no Python.h": (
        machine(tools={"python_headers": "/usr/include/python3.10"}, library=UNBUILT),
        (LIMITS, "python-headers-missing"),
        "/usr/include/python3.10",
        "python3-dev",
    ),
    "edited cpp_extension.py": (
        machine(tools=EDITED_NINJA, library=UNBUILT),
        (LIMITS, "ninja-edited"),
        "cpp_extension.py was edited from 'ninja -v' to 'ninja --version'",
        "pip install --force-reinstall --no-deps torch==2.4.1+cu121",
    ),
    "broken ninja": (
        machine(tools={"ninja_version": "", "ninja_output": "Exec format error"}, library=UNBUILT),
        (NOTE, "ninja-broken"),
        "does not run (Exec format error); the build goes on without it",
        "pip install --force-reinstall ninja",
    ),
    "no ninja": (machine(tools={"ninja": ""}, library=UNBUILT), (NOTE, "ninja-missing"), "there is no ninja", "ninja"),
    "numpy 2 and old torch": (
        machine(
            packages={"numpy": Package("2.0.2")},
            torch={"version": "2.1.2", "numpy_error": "RuntimeError: Numpy is not available"},
        ),
        (STOPS, "numpy-too-new"),
        "torch 2.1.2 was compiled for NumPy 1 and does not work with NumPy 2.0.2",
        'pip install "numpy<2"',
    ),
    "no numpy": (
        machine(packages={"numpy": Package("", "ModuleNotFoundError: No module named 'numpy'")}),
        (STOPS, "package-missing"),
        "numpy is not installed",
        "pip install numpy",
    ),
    "pycocotools of another numpy": (
        machine(packages={"pycocotools": Package("", "ValueError: numpy.dtype size changed, may indicate binary")}),
        (STOPS, "package-broken"),
        "importing pycocotools fails (ValueError: numpy.dtype size changed",
        "pip install --force-reinstall --no-cache-dir --no-deps pycocotools",
    ),
    "OpenCV without libGL": (
        machine(packages={"cv2": Package("", "ImportError: libGL.so.1: cannot open shared object file")}),
        (LIMITS, "package-broken"),
        "libGL.so.1",
        "pip install opencv-python-headless",
    ),
    "no matplotlib": (
        machine(packages={"matplotlib": Package("", "ModuleNotFoundError: No module named 'matplotlib'")}),
        (LIMITS, "package-missing"),
        "needed for curves of a training",
        "pip install matplotlib",
    ),
    "no library yet": (
        machine(library=UNBUILT),
        (NOTE, "library-unbuilt"),
        "there is no library of operators yet",
        "it is built at first use, or now: python -m fcos_core.build",
    ),
    "stale library": (
        machine(library=dict(UNBUILT, reason="built for torch 1.7.1, this is 2.4.1")),
        (NOTE, "library-unbuilt"),
        "does not fit here: it is built for torch 1.7.1, this is 2.4.1",
        "python -m fcos_core.build",
    ),
    "foreign library": (
        machine(library=dict(UNBUILT, reason="without a readable stamp")),
        (NOTE, "library-unbuilt"),
        "it is without a readable stamp",
        "python -m fcos_core.build",
    ),
    "stale library without sources": (
        machine(library=dict(UNBUILT, reason="built for torch 1.7.1, this is 2.4.1", has_sources=False)),
        (LIMITS, "sources-missing"),
        "this installation has no sources to build another",
        "install fcos_core again",
    ),
    "library that cannot be looked for": (
        machine(library={"error": "BuildError: plan: FORCE_CUDA is 1 but", "path": ""}),
        (STOPS, "library-refused"),
        "there is no library of operators: BuildError: plan: FORCE_CUDA is 1 but",
        "",
    ),
    "FORCE_CUDA=0 beside a GPU": (
        machine(library=CPU_KERNELS, environ={"FORCE_CUDA": "0"}),
        (LIMITS, "cuda-forbidden"),
        "FORCE_CUDA is 0",
        "unset FORCE_CUDA",
    ),
    "architectures without the GPU": (
        machine(library=UNBUILT, environ={"TORCH_CUDA_ARCH_LIST": "7.0;7.5"}),
        (LIMITS, "archs-leave-out-gpu"),
        "does not serve the GPU of this machine (sm_86)",
        "unset TORCH_CUDA_ARCH_LIST, or add 8.6",
    ),
    "stray colon": (
        machine(environ={"CUDA_HOME": "/usr/local/cuda-12.1:"}),
        (NOTE, "stray-characters"),
        "CUDA_HOME is '/usr/local/cuda-12.1:', with stray characters",
        "export CUDA_HOME=/usr/local/cuda-12.1 ",
    ),
    "CUDA_HOME without nvcc": (
        machine(environ={"CUDA_HOME": "/usr/local/cuda-9.0"}),
        (NOTE, "no-nvcc-there"),
        "CUDA_HOME names /usr/local/cuda-9.0, where there is no nvcc",
        "unset CUDA_HOME",
    ),
    "another minor version": (
        machine(tools={"toolkits": (Toolkit("/cuda", (12, 4), "PATH"),)}, library=UNBUILT),
        (NOTE, "toolkit-minor-version"),
        "another minor version is fine, and so is torch's warning of a minor version mismatch",
        "",
    ),
    "module of the predecessor": (
        machine(old_modules=("/clone/fcos_core/_C.cpython-37m-x86_64-linux-gnu.so",)),
        (LIMITS, "old-module"),
        "hides fcos_core._C",
        "delete it",
    ),
    "two copies": (
        machine(here="/clone/fcos_core", other_copies=("/env/site-packages/fcos_core",)),
        (NOTE, "other-copy"),
        "another one in /env/site-packages/fcos_core",
        "pip uninstall fcos_core",
    ),
}


@pytest.mark.parametrize("name", sorted(SITUATIONS))
def test_situation(name):
    known, gravest, cause, remedy = SITUATIONS[name]
    found = diagnose.diagnose(known)
    named = [finding for finding in found if (finding.weight, finding.name) == gravest]
    assert named, found
    assert cause in named[0].cause and remedy in named[0].remedy, named[0]
    assert found[0].weight == gravest[0]  # nothing graver
    works, sentence = diagnose.verdict(known, found)
    assert works == (gravest[0] != STOPS)
    if gravest[0] == STOPS:
        assert sentence.startswith("Training would not work: ") and found[0].cause in sentence


NO_BUILD = ["compiler-missing", "compiler-too-old", "setuptools-too-new", "setuptools-missing",
            "python-headers-missing", "sources-missing"]  # fmt: skip


@pytest.mark.parametrize("variable", [{"FCOS_CORE_FALLBACK": "0"}, {"FORCE_CUDA": "1"}])
def test_what_keeps_a_build_from_working_stops_where_nothing_may_serve_instead(variable):
    situations = [situation for situation in SITUATIONS.values() if situation[1][1] in NO_BUILD]
    assert {gravest[1] for _, gravest, _, _ in situations} == set(NO_BUILD)
    for known, gravest, _, _ in situations:
        works, _ = diagnose.verdict(known, diagnose.diagnose(known))
        assert works and gravest[0] == LIMITS
        known = known._replace(environ=variable)
        found = diagnose.diagnose(known)
        assert found[0].weight == STOPS and (STOPS, gravest[1]) in [(one.weight, one.name) for one in found]
        works, sentence = diagnose.verdict(known, found)
        assert not works and sentence.startswith("Training would not work: ")


def test_all_is_well():
    known = machine()
    assert diagnose.diagnose(known) == []
    assert diagnose.verdict(known, []) == (True, "Training works on NVIDIA GeForce RTX 3060")


def test_a_machine_without_a_gpu_trains_on_the_cpu():
    known = machine(torch={"gpus": ()}, driver=None, pci_gpus=0, library=dict(CPU_KERNELS), tools={"toolkits": ()})
    assert diagnose.diagnose(known) == []
    assert diagnose.verdict(known, []) == (True, "Training works on the CPU (MODEL.DEVICE cpu)")


def test_on_a_mac():
    """No NVIDIA anything; a CPU build is what there is."""
    known = machine(torch=CPU_TORCH, driver=None, pci_gpus=0, tools={"toolkits": ()}, system="Darwin")
    assert diagnose.diagnose(known) == []


@pytest.mark.parametrize("name", ["CPU torch beside a GPU", "sm_86 and no code for it", "GPU without a driver"])
def test_judged_for_the_cpu_no_gpu_matters(name):
    known = SITUATIONS[name][0]
    found = diagnose.diagnose(known, cpu_only=True)
    assert found and {finding.weight for finding in found} == {NOTE}
    assert diagnose.verdict(known, found, cpu_only=True) == (True, "Training works on the CPU (MODEL.DEVICE cpu)")


@pytest.mark.parametrize("name", ["no compiler", "no Python.h", "edited cpp_extension.py", "no toolkit"])
def test_what_only_a_build_needs_is_a_note_where_nothing_is_built(name):
    known = SITUATIONS[name][0]
    found = diagnose.diagnose(known._replace(library=machine().library))
    assert {finding.weight for finding in found} == {NOTE}


def test_without_a_compiler_a_library_of_cpu_kernels_still_serves():
    known = machine(tools={"compiler": ""}, library=CPU_KERNELS)
    found = diagnose.diagnose(known)
    assert {finding.weight for finding in found} == {LIMITS}
    _, sentence = diagnose.verdict(known, found)
    assert sentence.startswith("Training works on NVIDIA GeForce RTX 3060, but no C++ compiler")


def test_nothing_is_built_with_obstacles_in_the_way():
    found = diagnose.diagnose(machine(tools={"compiler": ""}, library=UNBUILT))
    assert [finding.name for finding in found] == ["compiler-missing", "library-unbuildable"]


def test_an_unbuilt_library_is_said_in_the_verdict():
    known = machine(library=UNBUILT)
    _, sentence = diagnose.verdict(known, diagnose.diagnose(known))
    assert sentence == "Training works on NVIDIA GeForce RTX 3060; the operators are built at first use"


@pytest.mark.parametrize("candidates", [[], [("/usr/bin/g++-11", hostcc.Compiler("gcc", (11, 4)))]])
def test_compiler_too_new_for_nvcc(candidates):
    gcc13 = hostcc.Compiler("gcc", (13, 2))
    host = hostcc.choose("11.8", hostcc.Limits(11, 14), gcc13, lambda: candidates)
    found = diagnose.diagnose(machine(host=host, library=CPU_KERNELS))
    ours = [finding for finding in found if finding.name.startswith("compiler-")][0]
    assert "gcc 13.2 is newer than the compilers that CUDA 11.8 takes (up to gcc 11)" in ours.cause
    if candidates:
        assert ours.weight == NOTE and "compiled with /usr/bin/g++-11" in ours.cause
    else:
        assert ours.weight == LIMITS and "sudo apt-get install g++-11" in ours.remedy


def test_gravest_first():
    known = machine(
        torch={"archs": CU102}, environ={"CUDA_HOME": "/x:"}, tools=EDITED_NINJA, library=UNBUILT, other_copies=("/y",)
    )
    weights = [finding.weight for finding in diagnose.diagnose(known)]
    assert weights[0] == STOPS and weights == sorted(weights, key=[STOPS, LIMITS, NOTE].index)


def test_the_toolkit_of_a_build_is_not_called_stray():
    known = machine(environ={"CUDA_HOME": "/usr/local/cuda-12.1"})
    assert CUDA_12_1.home == "/usr/local/cuda-12.1" and diagnose.diagnose(known) == []


CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    "gpu, names, expected",
    [
        (75, CU102 + ("sm_75",), "binary"),
        (86, CU102, ""),
        (86, CU102 + ("compute_70",), "ptx"),
        (89, CU130, "binary"),  # sm_86 code runs on sm_89
        (87, ["sm_80"], "binary"),
        (80, ["sm_86"], ""),  # but not the other way round
        (90, ["sm_90a"], "binary"),
        (103, ["sm_100a"], ""),
        (103, ["sm_100f"], "binary"),
        (120, ["compute_90a"], ""),
        (120, ["sm_90", "compute_90"], "ptx"),
        (70, CU130, ""),
        (70, CU130 + ["compute_120"], ""),
        (90, [], ""),
    ],
)
def test_which_code_runs_on_a_gpu(gpu, names, expected):
    assert arch.served_by_names(names, gpu) == expected
