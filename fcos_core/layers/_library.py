"""Loading of the compiled operators, at their first use and never at import.

Every function that calls an operator calls `load()` first.  So `import fcos_core.layers` works on a machine that
cannot compile anything.  There the operators of `_fallback` serve, with a warning that says why, what is slow and what
to do about it; FCOS_CORE_FALLBACK=0 makes that an error, and =1 takes them without trying to build.
"""

import os
import threading
import warnings

import torch

from fcos_core.build import BuildError, cuda, ensure_extension, findings
from fcos_core.layers import _fake

_lock = threading.Lock()
_loaded = False
_substitutes_because = ""  # why the operators of _fallback serve; empty if the library does


class SlowOperatorsWarning(RuntimeWarning):
    """The operators could not be compiled; those of tensor operations of torch serve."""


def _load_operators_of_fcos_core():
    """Make `torch.ops.fcos_core` usable: find or build the library, load it once per process.

    Raises:
        fcos_core.build.BuildError: there is no library that fits this torch, none can be built, and
            FCOS_CORE_FALLBACK is 0 or FORCE_CUDA is 1.
    """
    global _loaded
    if _loaded:
        return
    with _lock:
        if _loaded:
            return
        library = _find_library()
        if library is not None:
            torch.ops.load_library(library)
            _fake.register()
        _loaded = True


# The name that its code has is one that no module uses: tracing a call, torch.compile of torch 2.4 and 2.5 writes what
# came back into a global variable of that name, in the module of the function that is compiled.
load = _load_operators_of_fcos_core
load.__name__ = load.__qualname__ = "load"
if hasattr(torch, "_dynamo"):
    # torch.compile runs load() while tracing instead of tracing into it: a first use may be a compiled one.
    load = torch._dynamo.assume_constant_result(load)


def _find_library():
    """Path of the library; None if the operators of _fallback were put in its place."""
    asked = os.environ.get("FCOS_CORE_FALLBACK", "")
    if asked not in ("", "0", "1"):
        raise BuildError("load: expected FCOS_CORE_FALLBACK to be 0 or 1, got {!r}; unset it".format(asked))
    if asked == "1":
        _use_fallback(findings.fallback_asked_for())
        return None
    try:
        return ensure_extension()
    except BuildError as error:
        # who asks for CUDA kernels is not served by anything less
        if asked == "0" or os.environ.get("FORCE_CUDA") == "1":
            raise
        _use_fallback(findings.fallback(str(error)))
        return None


def _use_fallback(finding):
    global _substitutes_because
    # imported where it is needed: most processes never do
    from fcos_core.layers import _fallback

    _fallback.install()
    _substitutes_because = str(finding)
    warnings.warn("fcos_core: " + _substitutes_because, SlowOperatorsWarning, stacklevel=2)


def substitutes_because():
    """Say why the operators of tensor operations serve; an empty string if the compiled ones do."""
    load()
    return _substitutes_because


def check_operators(device, logger):
    """Load the operators before a run needs them, and say so if they cannot use its GPU.

    Args:
        device (torch.device): where the run computes.
        logger (logging.Logger): gets the warning that there are no compiled operators, or no CUDA kernels, with the
            reason.

    Raises:
        fcos_core.build.BuildError: as for `load`.
    """
    with warnings.catch_warnings():
        # the log says it, once
        warnings.simplefilter("ignore", SlowOperatorsWarning)
        load()
    if _substitutes_because:
        logger.warning(_substitutes_because)
    elif device.type == "cuda" and not torch.ops.fcos_core._built_with_cuda():
        logger.warning(str(findings.library_without_cuda(cuda.plan(torch).why)))
