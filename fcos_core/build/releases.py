"""Releases of torch: which Python, CUDA and GPUs each one serves, and which one to install where.

Read from the wheels of the package index for Linux (x86-64); the index of pytorch.org has the same ones for Windows.
"""

from typing import NamedTuple, Tuple

from fcos_core.build import findings


class Release(NamedTuple):
    """A release of torch, as its default wheel has it."""

    version: str
    pythons: Tuple[int, int]  # first and last minor version of Python 3
    cuda: str
    archs: Tuple[int, ...]  # machine code; none of them carries PTX


RELEASES = (
    Release("1.7.1", (6, 9), "10.2", (37, 50, 60, 70, 75)),
    Release("1.8.1", (6, 9), "10.2", (37, 50, 60, 70)),
    Release("1.9.1", (6, 9), "10.2", (37, 50, 60, 70)),
    Release("1.10.2", (6, 9), "10.2", (37, 50, 60, 70)),
    Release("1.11.0", (7, 10), "10.2", (37, 50, 60, 70)),
    Release("1.12.1", (7, 10), "10.2", (37, 50, 60, 70)),
    Release("1.13.1", (7, 11), "11.7", (37, 50, 60, 70, 75, 80, 86)),
    Release("2.0.1", (8, 11), "11.7", (37, 50, 60, 70, 75, 80, 86)),
    Release("2.1.2", (8, 11), "12.1", (50, 60, 70, 75, 80, 86, 90)),
    Release("2.2.2", (8, 12), "12.1", (50, 60, 70, 75, 80, 86, 90)),
    Release("2.3.1", (8, 12), "12.1", (50, 60, 70, 75, 80, 86, 90)),
    Release("2.4.1", (8, 12), "12.1", (50, 60, 70, 75, 80, 86, 90)),
    Release("2.5.1", (9, 13), "12.4", (50, 60, 70, 75, 80, 86, 90)),
    Release("2.6.0", (9, 13), "12.4", (50, 60, 70, 75, 80, 86, 90)),
    Release("2.7.1", (9, 13), "12.6", (50, 60, 70, 75, 80, 86, 90)),
    Release("2.8.0", (9, 13), "12.8", (70, 75, 80, 86, 90, 100, 120)),
    Release("2.9.1", (10, 14), "12.8", (70, 75, 80, 86, 90, 100, 120)),
    Release("2.10.0", (10, 14), "12.8", (70, 75, 80, 86, 90, 100, 120)),
    Release("2.11.0", (10, 14), "13.0", (75, 80, 86, 90, 100, 120)),
    Release("2.12.1", (10, 14), "13.0", (75, 80, 86, 90, 100, 120)),
    Release("2.14.1", (10, 14), "13.0", (75, 80, 86, 90, 100, 120)),
    Release("2.15.0", (11, 15), "13.2", (75, 80, 86, 90, 100, 120)),
)


def serves(release, gpu):
    """Tell whether a release has machine code for a GPU, given as 86 for 8.6."""
    return any(arch // 10 == gpu // 10 and arch <= gpu for arch in release.archs)


def best(python, gpu=None, driver_cuda=None):
    """Choose the newest release that serves a machine.

    Args:
        python (tuple[int, int]): version of Python.
        gpu (int or None): architecture of the GPU, such as 86.
        driver_cuda (tuple[int, int] or None): what the driver serves; a driver runs all of its own CUDA major version
            (from 11 on) and those before.

    Returns:
        Release or None: None if there is none.
    """
    for release in reversed(RELEASES):
        cuda = _numbers(release.cuda)
        if not release.pythons[0] <= python[1] <= release.pythons[1]:
            continue
        if gpu is not None and not serves(release, gpu):
            continue
        if driver_cuda is not None and (cuda[0] > driver_cuda[0] or (cuda[0] < 11 and cuda > tuple(driver_cuda))):
            continue
        return release
    return None


def command(python, gpu=None, driver_cuda=None, upgrade=False):
    """Say what to type for a torch that serves a machine.

    Args:
        python, gpu, driver_cuda: as for `best`.
        upgrade (bool): there is a torch already.

    Returns:
        str: a command; where no release serves all three, a sentence that says which to change.
    """
    release = best(python, gpu, driver_cuda)
    if release is not None:
        # the newest of all needs no number
        index = "cu" + release.cuda.replace(".", "") if gpu is not None else ""
        return findings.command_for(release.version if gpu is not None else "", index, upgrade)
    if driver_cuda is not None and best(python, gpu):
        wanted = best(python, gpu)
        return "update the NVIDIA driver to one that serves CUDA {} (this one: {}.{}), then {}".format(
            wanted.cuda, driver_cuda[0], driver_cuda[1], findings.command_for(wanted.version, _index(wanted), upgrade)
        )
    others = [release for release in RELEASES if gpu is None or serves(release, gpu)]
    if others:
        return "no torch for Python {}.{} serves this GPU; use Python 3.{} to 3.{} with torch {} (see {})".format(
            python[0], python[1], max(7, others[-1].pythons[0]), others[-1].pythons[1], others[-1].version, _previous()
        )
    return "no release of torch has code for this GPU; train on the CPU with MODEL.DEVICE cpu"


def _index(release):
    return "cu" + release.cuda.replace(".", "")


def _previous():
    return findings.GET_TORCH + "/previous-versions"


def _numbers(version):
    return tuple(int(part) for part in version.split(".")[:2])
