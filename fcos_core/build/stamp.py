"""The stamp: what a library was built for and with, and whether it may be loaded here.

A stamp is a flat dict of strings, written as json beside the library.  The keys of `RUNTIME` decide whether a library
fits a process; the compiler does not, since a library built by g++ 12 runs where there is g++ 9 or none, but it is
part of the key of a folder of object files.
"""

import hashlib
import json
import os
import sys
import sysconfig

from fcos_core.build import arch, torch_files

# key -> how it is called in a message; order is the order of the message
RUNTIME = (
    ("torch", "torch"),
    ("torch_abi", "torch's C++ ABI"),
    ("torch_cuda", "torch's CUDA"),
    ("python", "Python"),
    ("platform", "platform"),
    ("kernels", "kernels"),
    ("sources", "sources"),
)
TOOLS = ("compiler", "archs")


def make(torch, torch_abi, torch_cuda, python, platform_name, sources, compiler="", libc="", archs=None):
    """Make a stamp from its ingredients.

    Args:
        torch (str): version with its local part, such as "2.14.1+cu130".
        torch_abi (bool): whether torch was built with the new C++ ABI of libstdc++.
        torch_cuda (str or None): CUDA (or ROCm) version of torch; None for a CPU build.
        python (str): the suffix of extension modules, which names implementation, version and debug flags.
        platform_name (str): system and processor.
        sources (str): hash of the sources.
        compiler (str): what the compiler says about itself.
        libc (str): such as "glibc 2.31"; a library needs at least the version it was built with.
        archs (str or None): architectures of the CUDA kernels, see arch.py: of a library those that it was compiled
            for, of a process those of its GPUs; None without CUDA kernels, or where they are not wanted.

    Returns:
        dict[str, str]: the stamp.
    """
    return {
        "torch": str(torch),
        "torch_abi": "cxx11" if torch_abi else "pre-cxx11",
        "torch_cuda": str(torch_cuda or "none"),
        "python": python,
        "platform": platform_name,
        "kernels": "cpu" if archs is None else "cuda",
        "sources": sources,
        "compiler": compiler,
        "libc": libc,
        "archs": archs or "",
    }


def collect(sources, compiler="", archs=None, torch=None):
    """Make the stamp of this process.

    Args:
        sources (str): hash of the sources.
        compiler (str): what the compiler says about itself; not needed to look for a library.
        archs (str or None): as for `make`.
        torch (torch_files.TorchBuild or None): the torch; None imports it and asks.

    Returns:
        dict[str, str]: see `make`.
    """
    if torch is None:
        import torch as module

        torch = torch_files.of_module(module)
    return make(
        torch=torch.version,
        torch_abi=torch.cxx11_abi,
        torch_cuda=torch.cuda or torch.hip,
        python=extension_suffix(),
        platform_name=sysconfig.get_platform(),
        sources=sources,
        compiler=compiler,
        libc=libc_version(),
        archs=archs,
    )


def digest(stamp, keys=None):
    """Hash the part of a stamp that has these keys; by default that of `RUNTIME` and `TOOLS`.

    Returns:
        str: 16 hexadecimal digits, to name a folder.
    """
    keys = [key for key, _ in RUNTIME] + list(TOOLS) if keys is None else keys
    text = json.dumps([[key, stamp[key]] for key in keys])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def runtime_digest(stamp):
    """Hash what a process asks of a library: the name of its folder in the cache."""
    return digest(stamp, [key for key, _ in RUNTIME] + ["archs"])


def tool_digest(stamp):
    """Hash all but the sources: the name of a folder of object files, which follow the sources by themselves."""
    return digest(stamp, [key for key, _ in RUNTIME if key != "sources"] + list(TOOLS))


def misfit(built, wanted):
    """Say why a library may not be loaded here.

    Args:
        built (dict): its stamp.
        wanted (dict): the stamp of this process.

    Returns:
        str: such as "built for torch 1.7.1, this is 2.14.1"; empty if it fits.
    """
    reasons = []
    for key, name in RUNTIME:
        if built.get(key) != wanted[key]:
            if key == "kernels":
                # those of the GPU are in none of the others' way
                if wanted[key] == "cuda":
                    reasons.append("built without CUDA kernels")
            elif key == "sources":
                reasons.append("built from other sources")
            else:
                reasons.append("built for {} {}, this is {}".format(name, built.get(key, "unknown"), wanted[key]))
    built_archs = arch.parse(built.get("archs", ""))
    for gpu, _ in arch.parse(wanted["archs"]):
        if built.get("kernels") == "cuda" and not arch.covers(built_archs, gpu):
            reasons.append("without code for this GPU (sm_{}), only for {}".format(gpu, built["archs"]))
    if _libc_tuple(built.get("libc", "")) > _libc_tuple(wanted["libc"]):
        reasons.append("built with {}, this is {}".format(built["libc"], wanted["libc"]))
    return "; ".join(reasons)


def libc_version():
    """Return the C library of this process, such as "glibc 2.36"; empty where it does not say (only glibc does)."""
    try:
        # platform.libc_ver() looks into the interpreter's file and may name the version it was linked with
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        return ""


def _libc_tuple(libc):
    version = libc.split(" ")[-1].split(".")
    return tuple(int(part) for part in version) if all(part.isdigit() for part in version) else ()


def extension_suffix():
    """Return the file ending of extension modules of this Python, such as ".cpython-311-x86_64-linux-gnu.so"."""
    return sysconfig.get_config_var("EXT_SUFFIX") or (".pyd" if sys.platform == "win32" else ".so")


def library_name():
    """Return the file name of the library for this Python; several Pythons can share one source tree."""
    return "_ext" + extension_suffix()


def path_for(library):
    """Return the path of the stamp of a library."""
    return library + ".json"


def write(stamp, library):
    """Write the stamp of a library beside it, whole or not at all.

    Args:
        stamp (dict): the stamp.
        library (str): path of the library, which must exist: its size is noted, so that a library that was replaced
            or cut is not taken for this one.
    """
    content = dict(stamp, bytes=os.path.getsize(library))
    temporary = "{}.{}".format(path_for(library), os.getpid())
    with open(temporary, "w") as stream:
        json.dump(content, stream, indent=1, sort_keys=True)
    os.replace(temporary, path_for(library))


def read(library):
    """Return the stamp of a library; {} if it has none that can be read."""
    try:
        with open(path_for(library)) as stream:
            content = json.load(stream)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check(library, wanted):
    """Say why the library at a path may not be loaded here.

    Args:
        library (str): path; need not exist.
        wanted (dict): the stamp of this process.

    Returns:
        str: the reason, such as "built for torch 1.7.1, this is 2.14.1"; "" if it fits, "missing" if there is none.
    """
    if not os.path.isfile(library):
        return "missing"
    built = read(library)
    if not built:
        return "without a readable stamp"
    if built.get("bytes") != os.path.getsize(library):
        return "not the file that its stamp describes"
    return misfit(built, wanted)
