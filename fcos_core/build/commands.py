"""The setuptools side: what `setup.py` declares, and its build_ext, build_py, develop and clean."""

import os
import shutil
import subprocess
import sys
import sysconfig

import setuptools
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from fcos_core.build import cache, inputs, metadata, sources, stamp, torch_files
from fcos_core.build.errors import BuildError
from fcos_core.build.extension import run_worker
from fcos_core.build.torch_path import expose_torch

# setup.py is also run to ask for names and versions: no message then
_ASKS_ONLY = {"egg_info", "dist_info", "sdist", "clean", "--version", "--name", "--help", "--help-commands"}

# the package, its other name, and the demo package
PACKAGES = ["fcos_core", "fcos_core.*", "atss_core", "atss_core.*", "fcos"]

# in a clone beside the package, in a wheel inside it
CARRIED = {"csrc": (".cpp", ".h", ".cu", ".cuh", ".md"), "configs": (".yaml", ".md")}


def setup_arguments(root):
    """Decide what `setup()` is called with.

    Args:
        root (str): the folder of setup.py, which is the current folder.

    Returns:
        dict: keywords for `setuptools.setup`.
    """
    arguments = {
        "license": "MIT",
        "packages": setuptools.find_packages(root, include=PACKAGES),
        "package_data": {"fcos_core": ["README.md"], "fcos": ["*.json"]},
        "zip_safe": False,
        "cmdclass": {"build_ext": BuildExt, "build_py": BuildPy, "clean": Clean},
    }
    if setuptools.__version__.startswith("61."):
        sys.exit("fcos_core: setuptools 61 misreads pyproject.toml; python -m pip install 'setuptools>=62'")
    if not metadata.setuptools_reads_pyproject(setuptools.__version__):
        arguments.update(metadata.read(root))
    csrc = os.path.join(root, "csrc")
    site = expose_torch()
    required = metadata.dependencies(root, site and torch_files.version(site))
    arguments["install_requires"] = required
    if int(setuptools.__version__.split(".")[0]) < 80:
        arguments["cmdclass"]["develop"] = develop_command(required)
    if site is not None:
        extension = setuptools.Extension(
            "fcos_core._ext", sources.host_sources(csrc), depends=sources.headers(csrc), language="c++"
        )
        arguments["ext_modules"] = [extension]
    elif "build_ext" in sys.argv:
        sys.exit("fcos_core: build_ext needs torch; install it into this environment first")
    elif not _ASKS_ONLY & set(sys.argv[1:]):
        print(
            "fcos_core: there is no torch in this environment, so the ops are not built now; they will be at first use",
            file=sys.stderr,
        )
    return arguments


class BuildExt(build_ext):
    """Compile in a process of its own, by the same code as at first use, and leave the stamp beside the library."""

    def build_extension(self, ext):
        """Build the one extension there is."""
        target = os.path.abspath(self.get_ext_fullpath(ext.name))
        temporary = os.path.abspath(self._temporary())
        output = os.path.join(temporary, "library")
        csrc = os.path.abspath("csrc")
        wanted = inputs.collect(expose_torch(), csrc)
        if not self.force and inputs.made(output, wanted):
            archs = stamp.read(os.path.join(output, stamp.library_name())).get("archs")
            kernels = "with CUDA kernels for {}".format(archs) if archs else "without CUDA kernels"
            print("fcos_core: nothing to compile, the library ({}) is that of these sources and tools".format(kernels))
        else:
            inputs.forget(output)
            try:
                run_worker(csrc, output, temporary)
            except BuildError as error:
                sys.exit("fcos_core: {}".format(error))
            inputs.write(output, wanted)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        self._put(os.path.join(output, stamp.library_name()), target)

    def _temporary(self):
        """Folder of object files: for an editable installation setuptools would make one that is gone by the next."""
        if not getattr(self, "editable_mode", False):
            return self.build_temp
        return os.path.join("build", "temp.{}-{}".format(sysconfig.get_platform(), sys.implementation.cache_tag))

    def copy_extensions_to_source(self):
        """Also carry the stamp; called by setuptools for in-place and editable builds."""
        super().copy_extensions_to_source()
        package = self.get_finalized_command("build_py").get_package_dir("fcos_core")
        for ext in self.extensions:
            built = os.path.join(self.build_lib, self.get_ext_filename(self.get_ext_fullname(ext.name)))
            self._put(built, os.path.join(package, os.path.basename(built)))

    def get_outputs(self):
        """List the library and its stamp."""
        outputs = super().get_outputs()
        return outputs + [stamp.path_for(name) for name in outputs]

    @staticmethod
    def _put(library, target):
        for source, destination in ((library, target), (stamp.path_for(library), stamp.path_for(target))):
            # never write into a file that another process may have loaded
            partial = "{}.{}".format(destination, os.getpid())
            shutil.copyfile(source, partial)
            os.replace(partial, destination)


class BuildPy(build_py):
    """Put csrc and configs into the wheel, so that first use can build and tools find the configurations."""

    def run(self):
        """Copy the package, then what it carries; an editable installation uses the clone's own."""
        super().run()
        if getattr(self, "editable_mode", False):
            return
        for folder in CARRIED:
            # a former build may have left files that are gone by now
            shutil.rmtree(os.path.join(self.build_lib, "fcos_core", folder), ignore_errors=True)
        for source, target in self._carried():
            self.mkpath(os.path.dirname(target))
            self.copy_file(source, target, preserve_mode=False)

    def get_outputs(self, include_bytecode=1):
        """List what is put into the wheel."""
        outputs = super().get_outputs(include_bytecode)
        if getattr(self, "editable_mode", False):
            return outputs
        return outputs + [target for _, target in self._carried()]

    def _carried(self):
        for folder, suffixes in CARRIED.items():
            for name in sources.find(folder, suffixes):
                yield name, os.path.join(self.build_lib, "fcos_core", *name.split("/"))


def develop_command(required, base=None):
    """Make a develop command that leaves to pip what is required, as setuptools 80 and later do by themselves.

    Earlier ones fetch it by easy_install, which takes the newest release whatever Python it is for, and fails at a
    source that has no setup.py.

    Args:
        required (list[str]): what pip installs.
        base (type or None): the command of setuptools, in a test another one.

    Returns:
        type: a setuptools command.
    """
    if base is None:
        from setuptools.command.develop import develop as base

    class Develop(base):
        def run(self):
            with_required = not self.no_deps and not self.uninstall
            self.no_deps = True
            super().run()
            if with_required and subprocess.call([sys.executable, "-m", "pip", "install"] + required):
                sys.exit("fcos_core: it is installed, but what it requires is not; python -m pip install -e .")

    return Develop


class Clean(setuptools.Command):
    """Remove all that a build left in the tree, so that it is as it was cloned."""

    description = "remove all that a build left in this tree"
    user_options = [("all", "a", "accepted for habit's sake: everything is always removed")]
    boolean_options = ["all"]

    def initialize_options(self):
        """Set the one option."""
        self.all = False

    def finalize_options(self):
        """Nothing depends on anything."""

    def run(self):
        """Remove; say what, and what else there is."""
        for path in build_leftovers(os.getcwd()):
            print("removing {}".format(os.path.relpath(path)))
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.remove(path)
        if os.path.isdir(cache.libraries_dir()):
            print(
                "kept: libraries built at first use, in {}; python -m fcos_core.build --clean removes them".format(
                    cache.libraries_dir()
                )
            )


def build_leftovers(root):
    """List what a build, an installation, an import or a test run has left in a clone.

    Args:
        root (str): the clone.

    Returns:
        list[str]: absolute paths of files and folders.
    """
    folders = ("build", "dist", ".pytest_cache", ".ruff_cache", ".hypothesis")
    found = [os.path.join(root, name) for name in folders if os.path.isdir(os.path.join(root, name))]
    found += [os.path.join(root, name) for name in sorted(os.listdir(root)) if name.endswith(".egg-info")]
    package = os.path.join(root, "fcos_core")
    found += [os.path.join(package, name) for name in sorted(os.listdir(package)) if name.startswith("_ext")]
    for top in ("fcos_core", "atss_core", "fcos", "demo", "tools", "tests", "benchmarks"):
        for folder, _, _ in os.walk(os.path.join(root, top)):
            if os.path.basename(folder) == "__pycache__":
                found.append(folder)
    return found
