"""Which host compiler, and what it calls itself."""

import os
import platform
import shlex
import shutil
import subprocess

from fcos_core.build import findings
from fcos_core.build.errors import BuildError


def find_compiler(environ=os.environ, system=None):
    """Find the C++ compiler that torch's build code will call.

    Args:
        environ (dict): environment variables; CXX (which may hold arguments or a launcher such as ccache) comes
            first, then the usual names along PATH.
        system (str or None): `platform.system()` of the target of the question.

    Returns:
        list[str]: the command.  On Windows always ["cl"], which setuptools finds by itself.

    Raises:
        BuildError: if there is none.
    """
    if (system or platform.system()) == "Windows":
        return ["cl"]
    asked = shlex.split(environ.get("CXX", ""))
    for command in [asked] if asked else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0], path=environ.get("PATH")):
            return command
    if asked:
        raise BuildError("find_compiler: expected CXX to name a program, got {!r}; unset it".format(environ["CXX"]))
    raise BuildError("find_compiler: {}".format(findings.no_compiler()))


def one_word(command, folder):
    """Return a program that is the command, for torch, which takes the first word of CXX and drops the others.

    Args:
        command (list[str]): such as ["ccache", "g++"].
        folder (str): where a script may be written; made if need be.

    Returns:
        str: the command itself if it has one word.
    """
    if len(command) == 1:
        return command[0]
    os.makedirs(folder, exist_ok=True)
    script = os.path.join(folder, "cxx")
    with open(script, "w") as stream:
        stream.write('#!/bin/sh\nexec {} "$@"\n'.format(" ".join(shlex.quote(word) for word in command)))
    os.chmod(script, 0o755)
    return script


def describe(command):
    """Return the first line that a compiler says about itself, for the stamp and the log."""
    arguments = [] if command == ["cl"] else ["--version"]
    try:
        result = subprocess.run(
            command + arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
    except OSError:
        return "{} (version unknown)".format(" ".join(command))
    lines = result.stdout.decode(errors="replace").strip().splitlines()
    return lines[0].strip() if lines else "{} (version unknown)".format(" ".join(command))


def kind(description, system=None):
    """Tell a compiler's family from its description.

    Args:
        description (str): what `describe` returned.
        system (str or None): `platform.system()`.

    Returns:
        str: "msvc", "apple-clang", "clang" or "gcc".
    """
    if (system or platform.system()) == "Windows":
        return "msvc"
    if "Apple" in description:
        return "apple-clang"
    return "clang" if "clang" in description.lower() else "gcc"
