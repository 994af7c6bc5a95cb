"""How the operators of `csrc/` become a library that this torch can load.

There are two build moments and one code for both: `setup.py` (pip install) and the first use of an operator.  Both
run `python -m fcos_core.build --output DIR` in a process of its own (worker.py) and leave a stamp (stamp.py) beside
the library.  A library whose stamp does not fit the running torch, Python or sources is never loaded: another one is
built into the cache (cache.py), once, under a lock (lock.py), however many processes ask.

Where there is nothing to do, both commands say so without importing torch: `python -m fcos_core.build` and setup.py
take what they must know from torch's files (torch_files.py) and what was noted at the last build (inputs.py).

Nothing here needs torch, numpy or the rest of the package to be imported, so that setup.py can use it in an empty
environment and the doctor in a broken one.  variables.py lists the environment variables, findings.py what can go wrong
and what to do about it.
"""

from fcos_core.build.errors import BuildError
from fcos_core.build.extension import ensure_extension

__all__ = ["BuildError", "ensure_extension"]
