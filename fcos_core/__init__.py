"""FCOS and its relatives: dense, one-stage object detection.

Importing this package imports nothing heavy: no torch, no compiled code.  `fcos_core/README.md` is the
architecture page; `fcos_core.build` explains how and when the operators of `csrc/` are compiled.
"""

__version__ = "1.0.0.dev0"


def __getattr__(name):
    # The old packages offered `fcos_core._C` after a plain `import fcos_core`; resolved here only when asked for.
    if name == "_C":
        import importlib

        return importlib.import_module("fcos_core._C")
    raise AttributeError("module 'fcos_core' has no attribute '{}'".format(name))
