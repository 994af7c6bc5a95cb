"""Which files are compiled, where they lie, and a hash that changes when any of them does."""

import hashlib
import os

from fcos_core.build.errors import BuildError

PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_HOST = (".cpp",)
_HEADERS = (".h", ".cuh")
_DEVICE = (".cu",)


def csrc_dir(package_dir=PACKAGE_DIR):
    """Find the C++ sources that belong to a package folder.

    A wheel carries them as `fcos_core/csrc`; in a clone they lie beside the package.

    Args:
        package_dir (str): the folder of `fcos_core`.

    Returns:
        str or None: absolute path of the folder, None if the installation has no sources.
    """
    parent = os.path.dirname(os.path.abspath(package_dir))
    candidates = [os.path.join(os.path.abspath(package_dir), "csrc")]
    if os.path.isfile(os.path.join(parent, "setup.py")):
        candidates.append(os.path.join(parent, "csrc"))
    for candidate in candidates:
        if os.path.isfile(os.path.join(candidate, "library.cpp")):
            return candidate
    return None


def find(csrc, suffixes):
    """List the files with one of these suffixes.

    Args:
        csrc (str): the source folder.
        suffixes (tuple[str]): endings, with the dot.

    Returns:
        list[str]: sorted, relative to the parent of csrc, with forward slashes on every system.  Relative, because
        setuptools nests absolute source paths below the build folder, which breaks the path limit of Windows.
    """
    parent = os.path.dirname(os.path.abspath(csrc))
    found = []
    for folder, _, names in os.walk(os.path.abspath(csrc)):
        for name in names:
            if name.endswith(suffixes):
                found.append(os.path.relpath(os.path.join(folder, name), parent).replace(os.sep, "/"))
    return sorted(found)


def host_sources(csrc):
    """List the files for the host compiler, see `find`.

    Raises:
        BuildError: if two sources would become the same object file.
    """
    sources = find(csrc, _HOST)
    stems = {}
    for source in sources + find(csrc, _DEVICE):
        stem = os.path.splitext(source)[0]
        if stem in stems:
            raise BuildError(
                "host_sources: expected one source per object file, got {} and {}; rename one of them".format(
                    stems[stem], source
                )
            )
        stems[stem] = source
    return sources


def cuda_sources(csrc):
    """List the files for nvcc, see `find`."""
    return find(csrc, _DEVICE)


def headers(csrc):
    """List the headers, see `find`."""
    return find(csrc, _HEADERS)


def source_hash(csrc):
    """Hash all that goes into the library: every source and header, and the flags.

    Args:
        csrc (str): the source folder.

    Returns:
        str: sha256, hexadecimal.  Line endings do not count, so a checkout on Windows has the hash of one on Linux.
    """
    flags = os.path.join(os.path.dirname(os.path.abspath(__file__)), "flags.py")
    parent = os.path.dirname(os.path.abspath(csrc))
    total = hashlib.sha256()
    for name in find(csrc, _HOST + _HEADERS + _DEVICE) + [flags]:
        with open(os.path.join(parent, name), "rb") as stream:
            content = stream.read().replace(b"\r\n", b"\n")
        total.update("{}\0{}\0".format(os.path.basename(name) if name == flags else name, len(content)).encode())
        total.update(content)
    return total.hexdigest()
