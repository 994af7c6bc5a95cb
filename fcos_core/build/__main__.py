"""`python -m fcos_core.build`: make sure that the operators are built for this environment, and say where."""

import argparse
import os
import sys

from fcos_core.build import BuildError, cache, ensure_extension, findings, probe
from fcos_core.build.extension import find_extension
from fcos_core.build.sources import csrc_dir
from fcos_core.build.torch_path import expose_torch


def main(arguments=None):
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fcos_core.build", description=__doc__)
    parser.add_argument("--force", action="store_true", help="build anew, even if there is one that fits")
    parser.add_argument("--clean", action="store_true", help="remove all libraries that were built at first use")
    parser.add_argument("--output", metavar="DIR", help="compile here and now into this folder, printing everything")
    parser.add_argument("--temp", metavar="DIR", help="with --output: folder for object files, kept")
    parser.add_argument("--csrc", metavar="DIR", default=csrc_dir(), help="with --output: the source folder")
    options = parser.parse_args(arguments)
    if options.clean:
        print("removed {}".format(cache.clear() or "nothing, there was no cache"))
        return 0
    site = expose_torch()
    if site is None:
        print("fcos_core.build: no torch in this environment; install it first (python -m pip install torch)")
        return 1
    found = None if options.force or options.output else find_extension(site)
    if found:
        print(found)
        return 0
    error = _torch_error()
    if error:
        print("fcos_core.build: {}".format(error), file=sys.stderr)
        return 1
    if options.output:
        if not options.temp or not options.csrc:
            parser.error("--output needs --temp, and sources")
        from fcos_core.build.worker import main as compile_main

        return compile_main(options.csrc, options.output, options.temp)
    try:
        print(ensure_extension(force=options.force))
    except BuildError as error:
        print("fcos_core.build: {}".format(error), file=sys.stderr)
        return 1
    return 0


def _torch_error():
    """Say why torch cannot be imported and what to type; "" if it can."""
    try:
        import torch  # noqa: F401
    except Exception as error:
        command = findings.command_for("", "", upgrade=True)
        return str(findings.torch_broken(probe.one_line(error), command, "LD_LIBRARY_PATH" in os.environ))
    return ""


if __name__ == "__main__":
    sys.exit(main())
