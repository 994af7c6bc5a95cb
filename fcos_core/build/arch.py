"""For which GPU architectures the CUDA kernels are compiled, and which GPUs that serves.

Importable without torch.  An architecture is its compute capability as a number: 86 is 8.6, 120 is 12.0.  A list of
them is written "75 80 86+PTX": machine code for each, and intermediate code (PTX), which the driver compiles for newer
GPUs, of those marked.
"""

import ctypes
import os
import re
import subprocess

from fcos_core.build import toolkits
from fcos_core.build.errors import BuildError

# what torch's own build code takes for a name in TORCH_CUDA_ARCH_LIST
_NAMES = {
    "maxwell": "5.0;5.2+PTX",
    "pascal": "6.0;6.1+PTX",
    "volta": "7.0+PTX",
    "turing": "7.5+PTX",
    "ampere": "8.0;8.6+PTX",
    "ada": "8.9+PTX",
    "hopper": "9.0+PTX",
    "blackwell": "10.0;12.0+PTX",
}


def known_to(home):
    """List the architectures that the nvcc of a toolkit compiles for, ascending."""
    command = [toolkits.nvcc_of(home), "--help"]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError:
        return []
    return known_from_help(result.stdout.decode(errors="replace"))


def known_from_help(text):
    """Read the architectures from what `nvcc --help` prints."""
    return sorted({int(number) for number in re.findall(r"\b(?:compute|sm)_(\d+)\b", text)})


def parse(text):
    """Read a list such as TORCH_CUDA_ARCH_LIST has it.

    Args:
        text (str): numbers ("8.6", "8.6+PTX", "86") or names ("Ampere"), separated by ";", "," or blanks.

    Returns:
        list[tuple[int, bool]]: architecture and whether PTX is asked for, ascending.

    Raises:
        BuildError: for a word that is neither.
    """
    words = []
    for word in re.split(r"[;,\s]+", text.strip()):
        named = _NAMES.get(word.lower().replace("+ptx", ""))
        words += named.split(";") if named else [word] if word else []
    found = {}
    for word in words:
        match = re.match(r"(?:sm_|compute_)?(\d+)(?:\.(\d))?[af]?(\+PTX)?$", word, re.IGNORECASE)
        if not match:
            raise BuildError(
                "parse: expected TORCH_CUDA_ARCH_LIST to hold architectures such as 8.6 or 8.6+PTX, got {!r}; for an "
                "RTX 30 card: TORCH_CUDA_ARCH_LIST=8.6".format(word)
            )
        number = int(match.group(1)) * 10 + int(match.group(2)) if match.group(2) else int(match.group(1))
        found[number] = found.get(number, False) or bool(match.group(3))
    return sorted(found.items())


def render(archs):
    """Write a list of (architecture, with PTX) as "75 86+PTX"."""
    return " ".join("{}{}".format(number, "+PTX" if ptx else "") for number, ptx in archs)


def choose(asked, gpus, of_torch, known):
    """Decide what to compile for.

    Args:
        asked (str): TORCH_CUDA_ARCH_LIST, which wins; may be empty.
        gpus (list[int]): architectures of the GPUs that torch sees.
        of_torch (list[int]): architectures that this torch has code for.
        known (list[int]): architectures that nvcc knows.

    Returns:
        tuple[list[tuple[int, bool]], str]: (architecture, with PTX), ascending, all known to nvcc; and why.

    Raises:
        BuildError: if nvcc knows none of those asked for.
    """
    if asked.strip():
        wanted = parse(asked)
        chosen = [(number, ptx) for number, ptx in wanted if number in known]
        if not chosen:
            raise BuildError(
                "choose: expected TORCH_CUDA_ARCH_LIST ({}) to name architectures of this nvcc, which knows {}; "
                "change or unset it".format(asked, " ".join(map(str, known)))
            )
        dropped = [number for number, _ in wanted if number not in known]
        return chosen, "TORCH_CUDA_ARCH_LIST" + (
            " without {}, unknown to this nvcc".format(" ".join(map(str, dropped))) if dropped else ""
        )
    if gpus:
        # a GPU newer than the toolkit runs the newest PTX that the toolkit makes
        older = {gpu: [number for number in known if number <= gpu] for gpu in gpus}
        numbers = sorted({max(candidates) for candidates in older.values() if candidates})
        if numbers:
            return _with_newest_ptx(numbers), "the GPUs that torch sees"
    # the RTX 30 cards, which the wheels of many torch versions serve by the code for 8.0
    numbers = sorted({number for number in list(of_torch) + [86] if number in known})
    return _with_newest_ptx(numbers or known[-1:]), "the architectures of this torch that this nvcc knows, and 8.6"


def _with_newest_ptx(numbers):
    return [(number, number == numbers[-1]) for number in numbers]


def gencode_flags(archs):
    """Return nvcc's flags for a list of (architecture, with PTX).

    Given as flags, because a torch older than a GPU refuses its number in TORCH_CUDA_ARCH_LIST.
    """
    flags = []
    for number, ptx in archs:
        flags.append("-gencode=arch=compute_{0},code=sm_{0}".format(number))
        if ptx:
            flags.append("-gencode=arch=compute_{0},code=compute_{0}".format(number))
    return flags


def covers(archs, gpu):
    """Say how kernels compiled for a list serve a GPU.

    Machine code runs on GPUs of the same major number and at least the same minor one, PTX on all at least as new.

    Args:
        archs (list[tuple[int, bool]]): what was compiled.
        gpu (int): architecture of the GPU.

    Returns:
        str: "binary", "ptx" (the driver compiles at first use) or "" (it does not run).
    """
    if any(number // 10 == gpu // 10 and number <= gpu for number, _ in archs):
        return "binary"
    return "ptx" if any(ptx and number <= gpu for number, ptx in archs) else ""


def served_by_names(names, gpu):
    """Say how the code that a torch carries serves a GPU.

    Args:
        names (list[str]): "sm_86" is machine code, "compute_86" PTX; a trailing "a" (this GPU only) or "f" (GPUs of
            this major version only) is understood.
        gpu (int): architecture of the GPU.

    Returns:
        str: as for `covers`.
    """
    parsed = [re.match(r"(sm|compute)_(\d+)([af]?)$", name) for name in names]
    kinds = set()
    for kind, number, suffix in [match.groups() for match in parsed if match]:
        number = int(number)
        same_major = number // 10 == gpu // 10 and number <= gpu
        runs = number == gpu if suffix == "a" else same_major if suffix == "f" or kind == "sm" else number <= gpu
        if runs:
            kinds.add(kind)
    return "binary" if "sm" in kinds else "ptx" if "compute" in kinds else ""


def of_gpus(torch):
    """List the architectures of the GPUs that torch sees, ascending, each once."""
    if not torch.version.cuda or not torch.cuda.is_available():
        return []
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    return sorted({10 * major + minor for major, minor in capabilities})


def of_driver(torch_cuda, library=None):
    """List the architectures of the GPUs that a torch would see, from the driver, which answers sooner than torch.

    Args:
        torch_cuda (str or None): CUDA version of the torch; None for one without.
        library (ctypes.CDLL or None): the driver's library, by default that of this machine.

    Returns:
        list[int] or None: ascending, each once; None where only torch can tell, as with a driver older than its CUDA.
    """
    if not torch_cuda:
        return []
    if library is None:
        library = driver_library()
        if library is None:
            return []
    try:
        return _of_driver(library, tuple(int(part) for part in torch_cuda.split(".")[:2]))
    except (AttributeError, ValueError):
        return None


# of cuda.h: CUDA_ERROR_NO_DEVICE, also where CUDA_VISIBLE_DEVICES hides all; CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NO_DEVICE = 100
_MAJOR, _MINOR = 75, 76


def driver_library():
    """Load the library of the NVIDIA driver (ctypes.CDLL); None if there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None


def cuda_of_driver(library):
    """Return the newest CUDA version (major, minor) that a driver serves; None if its library does not say.

    Raises:
        AttributeError: if it is no such library.
    """
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)) or not number.value:
        return None
    return number.value // 1000, number.value % 1000 // 10


def _of_driver(library, torch_cuda):
    number, device, found = ctypes.c_int(), ctypes.c_int(), set()
    served = cuda_of_driver(library)
    if served is None or served < torch_cuda:
        return None
    started = library.cuInit(0)
    if started == _NO_DEVICE:
        return []
    if started or library.cuDeviceGetCount(ctypes.byref(number)):
        return None
    for index in range(number.value):
        if library.cuDeviceGet(ctypes.byref(device), index):
            return None
        capability = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            if library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
                return None
            capability.append(value.value)
        found.add(10 * capability[0] + capability[1])
    return sorted(found)


def of_torch(torch):
    """List the architectures that a torch has machine code for, also where there is no GPU."""
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)() or ""
    return sorted({int(number) for number in re.findall(r"\bsm_(\d+)", flags)})
