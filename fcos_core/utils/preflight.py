"""Questions to ask before a model is built: which device, and can this torch compute on this GPU at all?

A torch without code for the GPU either fails in the middle of the first step with "no kernel image is available" or,
if it carries PTX, appears to hang for minutes while the driver compiles. Both look like faults of the training code.
"""

import collections
import re

import torch


class DeviceError(RuntimeError):
    """The device of the config cannot be used; the message is for the user."""


# What `check_architecture` found. status: "ok", "ptx" (works, but the first run compiles) or "unsupported".
ArchitectureCheck = collections.namedtuple("ArchitectureCheck", ["status", "message"])

# First torch release with ready-made code for a GPU generation (compute capability), and the CUDA of its build. A GPU
# also runs code made for a lower minor number of the same generation: sm_89 runs what was built for sm_80 or sm_86.
_FIRST_TORCH = (
    ((12, 0), "2.7", "12.8"),
    ((10, 0), "2.7", "12.8"),
    ((9, 0), "2.0", "11.8"),
    ((8, 0), "1.7", "11.0"),
)


def check_architecture(capability, arch_list, torch_version="", cuda_version=""):
    """Compare a GPU with the code that a torch build carries.

    Args:
        capability (tuple[int, int]): compute capability of the GPU, for example (8, 6).
        arch_list (list[str]): what the build carries, as `torch.cuda.get_arch_list()` gives it: "sm_86" for machine
            code, "compute_86" for PTX. A trailing "a" (this GPU only) or "f" (this generation only) is understood.
        torch_version, cuda_version (str): only for the message.

    Returns:
        ArchitectureCheck: status and one or two sentences for the user.
    """
    capability = tuple(capability)
    gpu = "sm_{}{}".format(*capability)
    build = f"torch {torch_version} (CUDA {cuda_version}, {' '.join(arch_list) or 'no architectures'})"
    entries = [entry for entry in map(_parse_architecture, arch_list) if entry]
    if any(kind == "sm" and _runs_machine_code(capability, target, suffix) for kind, target, suffix in entries):
        return ArchitectureCheck("ok", f"{build} has machine code for this GPU ({gpu}).")
    if any(kind == "compute" and _compiles_ptx(capability, target, suffix) for kind, target, suffix in entries):
        return ArchitectureCheck(
            "ptx",
            f"{build} has only PTX for this GPU ({gpu}): the first run compiles it for minutes without a sign of life, "
            "later runs take it from the driver's cache. " + _advice(capability),
        )
    return ArchitectureCheck("unsupported", f"{build} has no code for this GPU ({gpu}). " + _advice(capability))


def _parse_architecture(name):
    """("sm", (8, 6), "") for "sm_86"; None for what this function does not know."""
    match = re.match(r"^(sm|compute)_(\d+)(\d)([af]?)$", name)
    return match and (match.group(1), (int(match.group(2)), int(match.group(3))), match.group(4))


def _runs_machine_code(capability, target, suffix):
    if suffix == "a":
        return capability == target
    return capability[0] == target[0] and capability[1] >= target[1]


def _compiles_ptx(capability, target, suffix):
    if suffix:
        return _runs_machine_code(capability, target, suffix)
    return capability >= target


def _advice(capability):
    for first, torch_release, cuda_release in _FIRST_TORCH:
        if capability >= first:
            return (
                f"Install torch {torch_release} or newer, built with CUDA {cuda_release} or newer "
                "(see https://pytorch.org/get-started), or run with MODEL.DEVICE cpu."
            )
    return (
        "This GPU is older than what the build was made for: install an earlier torch or one built with an earlier "
        "CUDA (see https://pytorch.org/get-started/previous-versions), or run with MODEL.DEVICE cpu."
    )


def resolve_device(name, local_rank=0):
    """The torch device for a value of MODEL.DEVICE.

    Args:
        name (str): "cpu", "cuda", "cuda:1", or "auto" (a GPU if torch can use one, else the CPU).
        local_rank (int): the GPU that "cuda" and "auto" mean in this process.

    Returns:
        torch.device: with an index if it is a GPU.

    Raises:
        DeviceError: another name; or a GPU is asked for and torch sees none, or fewer than that.
    """
    if name == "cpu":
        return torch.device("cpu")
    match = re.match(r"^(?:auto|cuda(?::(\d+))?)$", name)
    if not match:
        raise DeviceError(f"resolve_device: expected MODEL.DEVICE auto, cpu, cuda or cuda:N, got {name!r}; change it")
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(match.group(1)) if match.group(1) else local_rank
    if not torch.cuda.is_available():
        raise DeviceError(
            f"resolve_device: expected a GPU for MODEL.DEVICE {name}, got none that torch {torch.__version__} can use; "
            "set MODEL.DEVICE cpu (or auto) to run without one"
        )
    if index >= torch.cuda.device_count():
        raise DeviceError(
            f"resolve_device: expected MODEL.DEVICE and the number of processes to fit the {torch.cuda.device_count()} "
            f"GPUs of this machine, got GPU number {index}; start fewer processes or name another device"
        )
    return torch.device("cuda", index)


def check_device(device, logger):
    """Stop, or warn, if this torch cannot compute on `device`. Reads facts only; allocates nothing.

    Args:
        device (torch.device): as `resolve_device` returns it.
        logger (logging.Logger): gets the warning that the first run compiles.

    Raises:
        DeviceError: the GPU is not supported by this build.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        return
    found = check_architecture(
        torch.cuda.get_device_capability(device), torch.cuda.get_arch_list(), torch.__version__, torch.version.cuda
    )
    if found.status == "unsupported":
        raise DeviceError("check_device: " + found.message)
    if found.status == "ptx":
        logger.warning(found.message)
