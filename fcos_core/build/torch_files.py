"""What the installed torch is, read from its files, since importing it takes seconds.

Only for answers that a process with an imported torch checks once more, such as which library there is.
"""

import ast
import importlib.util
import os
import re
from typing import NamedTuple, Optional


class TorchBuild(NamedTuple):
    """How a torch was built: its version with the local part, its CUDA or ROCm version, the C++ ABI of libstdc++."""

    version: str
    cuda: Optional[str]
    hip: Optional[str]
    cxx11_abi: bool


def of_module(torch):
    """Ask the imported torch (module) for its TorchBuild."""
    return TorchBuild(
        str(torch.__version__),
        torch.version.cuda,
        getattr(torch.version, "hip", None),
        bool(torch.compiled_with_cxx11_abi()),
    )


def read(site):
    """Read the TorchBuild of the torch in a site folder.

    Args:
        site (str): the folder that holds torch.

    Returns:
        TorchBuild or None: None where the files do not say, as on Windows before torch 2.8, or where it is not the
        torch that an import would take.
    """
    folder = os.path.join(site, "torch")
    if not _is_imported_from(folder):
        return None
    values = _assigned(_text(folder, "version.py"))
    abi = _cxx11_abi(_text(folder, "__init__.py"), _text(folder, "share", "cmake", "Torch", "TorchConfig.cmake"))
    if abi is None or not isinstance(values.get("__version__"), str) or "cuda" not in values:
        return None
    return TorchBuild(values["__version__"], values["cuda"], values.get("hip"), abi)


def version(site):
    """Read the version of the torch in a site folder, whichever an import would take; None if it does not say."""
    found = _assigned(_text(site, "torch", "version.py")).get("__version__")
    return found if isinstance(found, str) else None


def _is_imported_from(folder):
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return False
    origin = spec.origin if spec is not None else None
    return bool(origin) and os.path.realpath(origin) == os.path.realpath(os.path.join(folder, "__init__.py"))


def _assigned(text):
    """Dict of the constants that the text of a module assigns; empty if it is no Python of this version."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return {}
    values = {}
    for node in body:
        # newer ones with a type: cuda: Optional[str] = "12.1"
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            try:
                values[target.id] = ast.literal_eval(node.value)
            except (AttributeError, TypeError, ValueError):
                pass
    return values


def _cxx11_abi(package, config):
    """Tell the ABI from the text of torch/__init__.py, which has no other one from 2.8 on, or of TorchConfig.cmake."""
    function = re.search(r"^def compiled_with_cxx11_abi\(.*?\n(?=\S)", package, re.MULTILINE | re.DOTALL)
    if function and re.search(r"^\s+return True$", function.group(), re.MULTILINE):
        return True
    flags = set(re.findall(r"-D_GLIBCXX_USE_CXX11_ABI=([01])\b", config))
    return flags == {"1"} if len(flags) == 1 else None


def _text(*parts):
    try:
        with open(os.path.join(*parts), encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""
