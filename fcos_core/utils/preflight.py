"""Questions to ask before a model is built: which device, and can this torch compute on this GPU at all?

A torch without code for the GPU either fails in the middle of the first step with "no kernel image is available" or,
if it carries PTX, appears to hang for minutes while the driver compiles. Both look like faults of the training code.
"""

import re
import sys

import torch

from fcos_core.build import arch, diagnose, facts
from fcos_core.build.findings import STOPS


class DeviceError(RuntimeError):
    """The device of the config cannot be used; the message is for the user."""


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
            "set MODEL.DEVICE cpu (or auto) to run without one; python -m fcos_core.doctor says what is missing"
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
    major, minor = torch.cuda.get_device_capability(device)
    names = torch.cuda.get_arch_list()
    if arch.served_by_names(names, 10 * major + minor) == "binary":
        return
    driver = facts.driver_by_library()
    found = diagnose.gpu_code(
        10 * major + minor, names, torch.__version__, torch.version.cuda, sys.version_info[:2], driver and driver.cuda
    )
    if found.weight == STOPS:
        raise DeviceError("check_device: {}".format(found))
    logger.warning(str(found))
