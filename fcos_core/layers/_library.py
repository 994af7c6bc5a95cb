"""Loading of the compiled operators, at their first use and never at import.

Every function that calls an operator calls `load()` first.  So `import fcos_core.layers` works on a machine that
cannot compile anything, and the error, when there is one, appears where it can be explained.
"""

import threading

import torch

from fcos_core.build import cuda, ensure_extension, findings
from fcos_core.layers import _fake

_lock = threading.Lock()
_loaded = False


def load():
    """Make `torch.ops.fcos_core` usable: find or build the library, load it once per process.

    Raises:
        fcos_core.build.BuildError: there is no library that fits this torch, and none can be built.
    """
    global _loaded
    if _loaded:
        return
    with _lock:
        if _loaded:
            return
        torch.ops.load_library(ensure_extension())
        _fake.register()
        _loaded = True


def check_operators(device, logger):
    """Load the operators before a run needs them, and say so if they cannot use its GPU.

    Args:
        device (torch.device): where the run computes.
        logger (logging.Logger): gets the warning that there are no CUDA kernels, with the reason.

    Raises:
        fcos_core.build.BuildError: as for `load`.
    """
    load()
    if device.type == "cuda" and not torch.ops.fcos_core._built_with_cuda():
        logger.warning(str(findings.library_without_cuda(cuda.plan(torch).why)))


if hasattr(torch, "_dynamo"):
    # torch.compile runs load() while tracing instead of tracing into it: a first use may be a compiled one.
    load = torch._dynamo.assume_constant_result(load)
