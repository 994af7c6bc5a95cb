"""What a build does about CUDA: which toolkit, which architectures, which host compiler, or why no kernels at all.

Puts the decisions of toolkits.py, arch.py and hostcc.py together for the torch of this process.
"""

import glob
import os
import shutil
from typing import NamedTuple, Optional, Tuple

from fcos_core.build import arch, hostcc, toolkits
from fcos_core.build.errors import BuildError


class Plan(NamedTuple):
    """How the CUDA kernels are compiled; `toolkit` is None for a library without them, and `why` says why."""

    why: str
    toolkit: Optional[toolkits.Toolkit] = None
    archs: str = ""
    flags: Tuple[str, ...] = ()


def plan(torch, environ=os.environ):
    """Decide for this process; changes nothing.

    Args:
        torch (module): the imported torch.
        environ (dict): environment variables.

    Returns:
        Plan

    Raises:
        BuildError: if FORCE_CUDA or TORCH_CUDA_ARCH_LIST ask for what cannot be done.
    """
    toolkit, why = toolkits.wanted_here(torch)
    if toolkit is None:
        return Plan(why)
    host = hostcc.choose_here(toolkit, environ)
    if not host.works:
        if environ.get("FORCE_CUDA") == "1":
            raise BuildError("plan: FORCE_CUDA is 1 but {}".format(host.finding))
        return Plan(str(host.finding))
    asked = environ.get("TORCH_CUDA_ARCH_LIST", "")
    known = arch.known_to(toolkit.home)
    chosen, why_archs = arch.choose(asked, arch.of_gpus(torch), arch.of_torch(torch), known)
    archs = arch.render(chosen)
    why = "{}, for {} ({})".format(why, archs, why_archs)
    if host.finding is not None:
        why = "{}; {}".format(why, host.finding)
    return Plan(why, toolkit, archs, tuple(arch.gencode_flags(chosen)) + host.flags)


def prepare_environment(decided, environ=os.environ):
    """Set what torch's build code reads from the environment; call it before that code is imported.

    Args:
        decided (Plan): with a toolkit.
        environ (dict): environment variables, changed.
    """
    # torch looks for a toolkit itself, in fewer places
    environ["CUDA_HOME"] = decided.toolkit.home
    # It also holds the compiler of the .cpp files against nvcc's limits; what matters is the one that nvcc calls, and
    # that was looked at.
    environ["TORCH_DONT_CHECK_COMPILER_ABI"] = "1"
    named = environ.get("CC")
    if named and ("-ccbin" in decided.flags or shutil.which(named) is None):
        # torch gives nvcc what CC names, old versions beside our choice, and also what is no single program
        del environ["CC"]


def link_folders(home, temporary):
    """Return folders for the linker beside those that torch names.

    pip's packages carry libcudart.so.13, but not the name libcudart.so that the linker looks for.

    Args:
        home (str): folder of the toolkit.
        temporary (str): where a link may be made.

    Returns:
        list[str]: empty if the toolkit is complete.
    """
    folders = [os.path.join(home, name) for name in ("lib64", "lib")]
    if os.name == "nt" or any(os.path.exists(os.path.join(folder, "libcudart.so")) for folder in folders):
        return []
    for folder in folders:
        for library in sorted(glob.glob(os.path.join(folder, "libcudart.so.*"))):
            links = os.path.join(temporary, "link")
            os.makedirs(links, exist_ok=True)
            link = os.path.join(links, "libcudart.so")
            if os.path.lexists(link):
                os.remove(link)
            os.symlink(library, link)
            return [links]
    return []
