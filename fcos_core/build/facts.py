"""The facts about a machine and an environment that decide whether a training works; only gathered here.

What they mean is decided in diagnose.py, on these values alone, so that each situation can be brought about in a test.
"""

import glob
import os
import platform
import re
import shutil
import sys
import sysconfig
from typing import Dict, NamedTuple, Optional, Tuple

from fcos_core.build import arch, compiler, hostcc, jobs, probe, sources, toolkits, variables
from fcos_core.build.errors import BuildError
from fcos_core.build.toolkits import Toolkit

# what is imported -> what is installed, what it is needed for, whether nothing works without it
PACKAGES = {
    "numpy": ("numpy", "everything", True),
    "PIL": ("pillow", "reading images", True),
    "yacs": ("yacs", "the configuration", True),
    "cv2": ("opencv-python-headless", "drawing detections, and videos in the demo", False),
    "pycocotools": ("pycocotools", "testing with COCO metrics", True),
    "matplotlib": ("matplotlib", "curves of a training", False),
    "tensorboard": ("tensorboard", "TensorBoard files", False),
}


class Gpu(NamedTuple):
    """A GPU: its name, its architecture as 86 for 8.6 (None: not known), and bytes of memory."""

    name: str
    arch: Optional[int] = None
    memory: int = 0


class Driver(NamedTuple):
    """The NVIDIA driver: its version, the CUDA version that it serves, and the GPUs that it lists."""

    version: str
    cuda: Optional[Tuple[int, int]] = None
    gpus: Tuple[Gpu, ...] = ()


class Torch(NamedTuple):
    """The installed torch as it describes itself; `error` says why it does not."""

    version: str = ""
    error: str = ""
    unanswered: bool = False
    cuda: Optional[str] = None
    hip: Optional[str] = None
    cxx11_abi: Optional[bool] = None
    archs: Tuple[str, ...] = ()
    folder: str = ""
    gpus: Tuple[Gpu, ...] = ()
    gpu_error: str = ""
    numpy_error: str = ""


class Package(NamedTuple):
    """A package: its version, or why importing it fails."""

    version: str = ""
    error: str = ""


class Library(NamedTuple):
    """The library of operators: the one that is taken, or why none is."""

    path: str = ""
    reason: str = ""  # "" if it fits, "missing", or what does not fit: see stamp.check
    kernels: str = ""  # "cpu" or "cuda"
    archs: str = ""
    compiler: str = ""
    has_sources: bool = True
    plan: str = ""  # what a build would do about CUDA, or why not
    plan_toolkit: str = ""
    plan_archs: str = ""
    error: str = ""


class Tools(NamedTuple):
    """What a build finds to work with."""

    toolkits: Tuple[Toolkit, ...] = ()
    compiler: str = ""  # what it says about itself; "" if there is none
    compiler_kind: str = ""
    ninja: str = ""
    ninja_version: str = ""
    ninja_output: str = ""
    ninja_edited: bool = False
    setuptools: str = ""
    has_pkg_resources: bool = True
    python_headers: str = ""  # the folder where they should be; "" if they are there


class Facts(NamedTuple):
    """All of it."""

    python: Tuple[int, int, int] = (3, 11, 0)
    executable: str = "python"
    system: str = "Linux"
    platform: str = ""
    torch: Optional[Torch] = None  # None: not installed
    driver: Optional[Driver] = None
    pci_gpus: int = 0
    packages: Dict[str, Package] = {}
    library: Optional[Library] = None
    tools: Tools = Tools()
    host: Optional[hostcc.Choice] = None  # of the toolkit that a build would take
    host_default: str = ""
    environ: Dict[str, str] = {}
    here: str = ""
    other_copies: Tuple[str, ...] = ()
    old_modules: Tuple[str, ...] = ()


def collect(environ=os.environ):
    """Gather all facts; some seconds, most of them for importing torch in a process of its own.

    Returns:
        Facts
    """
    names = [probe.TORCH] + list(PACKAGES)
    installed = torch_folder() is not None
    answers = probe.ask((names if installed else names[1:]) + [probe.LIBRARY] * installed)
    torch = _torch(answers.get(probe.TORCH)) if installed else None
    tools = _tools(environ, torch.folder if torch and torch.folder else torch_folder())
    library = _library(answers.get(probe.LIBRARY)) if torch and not torch.error else None
    taken = toolkits.choose(tools.toolkits, torch.cuda)[0] if torch and torch.cuda else None
    here = sources.PACKAGE_DIR
    return Facts(
        python=tuple(sys.version_info[:3]),
        executable=sys.executable,
        system=platform.system(),
        platform=platform.platform(),
        torch=torch,
        driver=find_driver(environ),
        pci_gpus=count_pci_gpus(),
        packages={name: Package(answers[name].get("version", ""), answers[name].get("error", "")) for name in PACKAGES},
        library=library,
        tools=tools,
        host=hostcc.choose_here(taken, environ) if taken else None,
        host_default=str(hostcc.of_nvcc(taken.home) or "") if taken else "",
        environ=variables.of(environ),
        here=here,
        other_copies=other_copies(here, sys.path),
        old_modules=tuple(glob.glob(os.path.join(here, "_C.*so")) + glob.glob(os.path.join(here, "_C.*pyd"))),
    )


def _torch(answer):
    known = {key: value for key, value in answer.items() if key in Torch._fields}
    gpus = tuple(Gpu(**gpu) for gpu in known.pop("gpus", ()))
    return Torch(**dict(known, gpus=gpus, archs=tuple(known.get("archs", ()))))


def _library(answer):
    return Library(**{key: value for key, value in answer.items() if key in Library._fields})


def torch_folder(path=None):
    """Return the folder of the torch that would be imported, without importing it; None if there is none."""
    for entry in sys.path if path is None else path:
        folder = os.path.join(entry or os.getcwd(), "torch")
        if os.path.isfile(os.path.join(folder, "__init__.py")):
            return folder
    return None


def other_copies(here, path):
    """List folders of other packages of this name on a search path."""
    found = []
    for entry in path:
        folder = os.path.join(os.path.abspath(entry or os.getcwd()), "fcos_core")
        is_ours = os.path.realpath(folder) == os.path.realpath(here)
        if not is_ours and os.path.isfile(os.path.join(folder, "__init__.py")) and folder not in found:
            found.append(folder)
    return tuple(found)


# ---- tools


def _tools(environ, folder):
    try:
        command = compiler.find_compiler(environ)
        description = compiler.describe(command)
        if "version unknown" in description:
            description = _visual_studio(environ)
    except BuildError:
        description = ""
    ninja = jobs.find_ninja(environ)
    version, output = jobs.ninja_version(ninja) if ninja else ("", "")
    headers = sysconfig.get_paths()["include"]
    return Tools(
        toolkits=tuple(toolkits.find_toolkits(environ)),
        compiler=description,
        compiler_kind=compiler.kind(description) if description else "",
        ninja=ninja or "",
        ninja_version=version,
        ninja_output=output,
        ninja_edited=is_ninja_edited(_read(os.path.join(folder or "", "utils", "cpp_extension.py"))),
        setuptools=_setuptools_version(),
        has_pkg_resources=_importable("pkg_resources"),
        python_headers="" if os.path.isfile(os.path.join(headers, "Python.h")) else headers,
    )


def _visual_studio(environ):
    """Where Visual Studio lies, which setuptools finds without cl on PATH; "" if there is none."""
    folder = os.path.join(environ.get("ProgramFiles(x86)", ""), "Microsoft Visual Studio", "Installer")
    part = "Microsoft.VisualStudio.Component.VC.Tools.x86.x64"
    command = ["-latest", "-products", "*", "-requires", part, "-property", "installationPath"]
    path = toolkits.run([os.path.join(folder, "vswhere.exe")] + command).strip()
    return "Visual Studio in {}".format(path) if os.path.isdir(path) else ""


def is_ninja_edited(text):
    """Tell from the text of torch/utils/cpp_extension.py whether ninja was made to print its version only."""
    return bool(re.search(r"command\s*=\s*\[\s*['\"]ninja['\"]\s*,\s*['\"]--v", text))


def _setuptools_version():
    try:
        import setuptools

        return setuptools.__version__
    except Exception:
        return ""


def _importable(name):
    import importlib.util

    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _read(path):
    try:
        with open(path, errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


# ---- driver


def find_driver(environ=os.environ):
    """Ask nvidia-smi, or where there is none the driver's library.

    Returns:
        Driver or None
    """
    places = [environ.get("PATH", ""), "/usr/lib/wsl/lib", r"C:\Windows\System32"]
    places.append(os.path.join(environ.get("ProgramFiles", ""), "NVIDIA Corporation", "NVSMI"))
    smi = shutil.which("nvidia-smi", path=os.pathsep.join(places))
    if smi:
        listed = toolkits.run([smi, "--query-gpu=driver_version,name,compute_cap", "--format=csv,noheader"])
        if "not a valid field" in listed:  # drivers before 470
            listed = toolkits.run([smi, "--query-gpu=driver_version,name", "--format=csv,noheader"])
        found = read_smi(listed, toolkits.run([smi]))
        if found is not None:
            return found
    return driver_by_library()


def read_smi(listed, banner):
    """Read what nvidia-smi prints.

    Args:
        listed (str): a line for each GPU: driver version, name and, from driver 470 on, compute capability.
        banner (str): what it prints without options, with "CUDA Version: 12.4".

    Returns:
        Driver or None: None if it says neither.
    """
    gpus, version = [], ""
    for line in listed.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) >= 2 and re.match(r"[\d.]+$", parts[0]):
            version = parts[0]
            arch = re.match(r"(\d+)\.(\d)$", parts[2]) if len(parts) > 2 else None
            gpus.append(Gpu(parts[1], int(arch.group(1)) * 10 + int(arch.group(2)) if arch else None))
    found = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", banner)
    cuda = (int(found.group(1)), int(found.group(2))) if found else None
    return Driver(version, cuda, tuple(gpus)) if version or cuda else None


def driver_by_library():
    """Ask the driver's library, which is quick; it knows no names of GPUs. Driver or None."""
    library = arch.driver_library()
    try:
        cuda = None if library is None else arch.cuda_of_driver(library)
    except AttributeError:
        return None
    version = re.search(r"Module\s+(\d+\.[\d.]+)", _read("/proc/driver/nvidia/version"))
    return Driver(version.group(1) if version else "unknown version", cuda) if cuda else None


def count_pci_gpus():
    """Count the NVIDIA display adapters on the bus; 0 where that cannot be seen (only Linux shows it)."""
    count = 0
    for folder in glob.glob("/sys/bus/pci/devices/*"):
        vendor, kind = _read(os.path.join(folder, "vendor")).strip(), _read(os.path.join(folder, "class")).strip()
        count += vendor == "0x10de" and kind[:6] in ("0x0300", "0x0302")
    return count
