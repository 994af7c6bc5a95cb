"""Whether a build would give the library that is there: what went into it, noted beside it.

setup.py asks before it starts a compiler, since even a ninja that finds nothing to do is asked by a process that
imports torch first.  In doubt the answer is to build: ninja then compiles only what it must.
"""

import hashlib
import json
import os
import shutil

from fcos_core.build import arch, compiler, hostcc, sources, stamp, toolkits, torch_files, variables
from fcos_core.build.errors import BuildError

# what setuptools, compilers and linkers read beside variables.VARIABLES
_READ_BY_TOOLS = (
    "CPPFLAGS LDFLAGS LDSHARED LDCXXSHARED AR ARFLAGS ARCHFLAGS MACOSX_DEPLOYMENT_TARGET SDKROOT "
    "CPATH CPLUS_INCLUDE_PATH LIBRARY_PATH LD_RUN_PATH COMPILER_PATH GCC_EXEC_PREFIX "
    "CL _CL_ LINK _LINK_ INCLUDE LIB LIBPATH"
).split()
_NAME = "inputs.json"


def collect(site, csrc, environ=os.environ):
    """Gather what a library is made of, without importing torch.

    Args:
        site (str or None): the folder that holds torch.
        csrc (str): the source folder.
        environ (dict): environment variables.

    Returns:
        dict or None: None where only a build can tell.
    """
    torch = torch_files.read(site) if site else None
    gpus = arch.of_driver(torch.cuda) if torch else None
    if gpus is None:
        return None
    try:
        command = compiler.find_compiler(environ)
    except BuildError:
        return None
    program = shutil.which(command[0], path=environ.get("PATH"))
    if program is None:  # setuptools finds Visual Studio's by itself
        return None
    forced = environ.get("FORCE_CUDA")
    with_cuda = bool(torch.cuda) and forced != "0" and (bool(gpus) or forced == "1")
    found = toolkits.find_toolkits(environ) if with_cuda else []
    taken = toolkits.choose(found, torch.cuda)[0] if found else None
    path = os.path.join(site, "torch", "version.py")
    # front ends put folders of one run there; what is taken from them is noted by itself
    read = [name for name in list(variables.of(environ)) + list(_READ_BY_TOOLS) if name != "PYTHONPATH"]
    return {
        "stamp": stamp.collect(sources.source_hash(csrc), compiler.describe(command), torch=torch),
        "compiler": [os.path.realpath(program)] + command,
        # a torch of the same version put in its place
        "torch": [os.path.realpath(path), os.path.getmtime(path)],
        "gpus": gpus,
        "toolkits": [str(toolkit) for toolkit in found],
        "host": str(hostcc.choose_here(taken, environ)) if taken else "",
        "environment": {name: environ[name] for name in read if name in environ},
        "build": _hash_of_this_package(),
    }


def _hash_of_this_package():
    total = hashlib.sha256()
    folder = os.path.dirname(os.path.abspath(__file__))
    for name in sorted(os.listdir(folder)):
        if name.endswith(".py"):
            with open(os.path.join(folder, name), "rb") as stream:
                total.update(stream.read())
    return total.hexdigest()


def made(folder, wanted):
    """Tell whether the library in a folder is made of this.

    Args:
        folder (str): holds the library, its stamp and what `write` noted.
        wanted (dict or None): from `collect`.

    Returns:
        bool
    """
    if wanted is None or _read(folder) != json.loads(json.dumps(wanted)):
        return False
    return not stamp.check(os.path.join(folder, stamp.library_name()), wanted["stamp"])


def _read(folder):
    try:
        with open(os.path.join(folder, _NAME)) as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None


def forget(folder):
    """Remove what was noted, before a build that may end half-way."""
    path = os.path.join(folder, _NAME)
    if os.path.exists(path):
        os.remove(path)


def write(folder, wanted):
    """Note what the library in a folder is made of (dict or None, from `collect` before the build)."""
    if wanted is not None:
        with open(os.path.join(folder, _NAME), "w") as stream:
            json.dump(wanted, stream, indent=1, sort_keys=True)
