"""Reading pickles and torch files without running code from them.

A pickle may name any function of any module, which is then called: a downloaded "model" can take over the machine.
torch.load has `weights_only` against that, of use since 2.0: that of 1.13 cannot read a number with a fraction.  For
older releases and for plain pickles (Caffe2 weights) this module has an unpickler that knows a short list of harmless
names and refuses the others.
"""

import contextlib
import functools
import inspect
import io
import os
import pickle
import re
import threading
import zipfile

import torch

# Someone who trusts a file that was written with other classes sets this variable to 1.
UNSAFE_SWITCH = "FCOS_CORE_UNSAFE_PICKLE"

_STORAGES = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble".split()
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("collections", "Counter"),  # torch's own MultiStepLR keeps its milestones in one
    ("_codecs", "encode"),  # how Python 3 writes bytes for protocol 2
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.serialization", "_get_layout"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
} | {("torch", name + "Storage") for name in _STORAGES}
_INCOMPLETE = "load_torch_file: expected a complete file, got {}: {}; fetch or write it again"


class UnsafeFileError(RuntimeError):
    """The file names code that this package does not run."""


class CorruptFileError(RuntimeError):
    """The file is cut off or damaged."""


class RestrictedUnpickler(pickle.Unpickler):
    """Builds plain types, tensors and NumPy arrays; refuses every other global name."""

    def find_class(self, module, name):
        if (module, name) in _ALLOWED:
            return super(RestrictedUnpickler, self).find_class(module, name)
        raise UnsafeFileError(
            f"RestrictedUnpickler: expected plain data, got the name {module}.{name}; if you trust the file, set the "
            f"environment variable {UNSAFE_SWITCH}=1"
        )


class _RestrictedPickle(object):
    """What torch.load wants of its argument `pickle_module`."""

    Unpickler = RestrictedUnpickler

    @staticmethod
    def load(stream, **kwargs):
        return RestrictedUnpickler(stream, **kwargs).load()


def load_pickle(path, unsafe=None):
    """Read a plain pickle of NumPy arrays, such as Caffe2 weights; text of Python 2 becomes latin1.

    Args:
        path (str): the file.
        unsafe (bool): allow every name; default: whether the variable FCOS_CORE_UNSAFE_PICKLE is 1.

    Raises:
        UnsafeFileError, CorruptFileError
    """
    unpickler = pickle.Unpickler if _is_unsafe(unsafe) else RestrictedUnpickler
    with open(path, "rb") as stream:
        try:
            return unpickler(stream, encoding="latin1").load()
        except (EOFError, pickle.UnpicklingError, ValueError, KeyError, IndexError) as error:
            message = f"load_pickle: expected a complete pickle, got {path}: {error}; get it again"
            raise CorruptFileError(message) from error


def load_torch_file(path, unsafe=None):
    """Read a file of torch.save onto the CPU.

    Args:
        path (str): the file.
        unsafe (bool): allow every name; default: whether the variable FCOS_CORE_UNSAFE_PICKLE is 1.

    Raises:
        UnsafeFileError: it holds more than tensors and plain types.
        CorruptFileError: it is truncated or damaged.
    """
    _refuse_truncated(path)
    if _is_unsafe(unsafe):
        return _load(path, _PICKLE_ARGUMENTS_UNSAFE)
    try:
        return _load(path, _PICKLE_ARGUMENTS_SAFE)
    except pickle.UnpicklingError as error:
        # weights_only of newer torch reports a refused name and a damaged stream by the same type.
        refused = re.search(r"(?:Unsupported (?:class|global)|Trying to|Can only|the name)[^\n;]*", str(error))
        if refused:
            raise UnsafeFileError(
                f"load_torch_file: expected {path} to hold tensors and plain types, got: {refused.group(0)}; if you "
                f"trust the file, set the environment variable {UNSAFE_SWITCH}=1"
            ) from None
        raise CorruptFileError(_INCOMPLETE.format(path, _first_line(error))) from error


def _load(path, arguments):
    try:
        with _with_an_unpickler_of_ours(arguments):
            return torch.load(path, map_location="cpu", **arguments)
    except (UnsafeFileError, pickle.UnpicklingError):
        raise
    except (EOFError, RuntimeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CorruptFileError(_INCOMPLETE.format(path, _first_line(error))) from error


def _has_weights_only():
    """torch.load has taken `weights_only` since 1.13."""
    return "weights_only" in inspect.signature(torch.load).parameters


@functools.lru_cache(maxsize=None)
def _weights_only_serves():
    """Whether it reads what every checkpoint holds; that of torch 1.13 fails on a float, such as a learning rate."""
    stream = io.BytesIO()
    torch.save({"lr": 0.5}, stream)
    stream.seek(0)
    try:
        return torch.load(stream, weights_only=True) == {"lr": 0.5}
    except pickle.UnpicklingError:
        return False


_PICKLE_ARGUMENTS_SAFE = {"weights_only": True} if _has_weights_only() else {"pickle_module": _RestrictedPickle}
_PICKLE_ARGUMENTS_UNSAFE = {"weights_only": False} if _has_weights_only() else {}
_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def _with_an_unpickler_of_ours(arguments):
    """torch 1.13, only: in the place of its own for weights_only, since it leaves `pickle_module` out of account."""
    if not arguments.get("weights_only") or _weights_only_serves():
        yield
        return
    with _ONE_AT_A_TIME:
        theirs = torch.serialization._weights_only_unpickler
        torch.serialization._weights_only_unpickler = _RestrictedPickle
        try:
            yield
        finally:
            torch.serialization._weights_only_unpickler = theirs


def _refuse_truncated(path):
    """The directory of a zip archive stands at its end: without it the file was cut off."""
    with open(path, "rb") as stream:
        start = stream.read(2)
    if not start:
        raise CorruptFileError(_INCOMPLETE.format(path, "it is empty"))
    if start == b"PK" and not zipfile.is_zipfile(path):
        raise CorruptFileError(_INCOMPLETE.format(path, "it was cut off"))


def _is_unsafe(unsafe):
    return os.environ.get(UNSAFE_SWITCH) == "1" if unsafe is None else unsafe


def _first_line(error):
    return io.StringIO(str(error)).readline().strip() or type(error).__name__
