"""Old place of the compiled module."""
import importlib


def _load_C_extensions():
    """The module with the old function names, see `fcos_core._C`; its library is loaded at the first call."""
    return importlib.import_module("fcos_core._C")


def __getattr__(name):
    if name == "_C":
        return _load_C_extensions()
    raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))
