"""The compilation itself: setuptools and torch's BuildExtension, in this process.

Run by `python -m fcos_core.build --output DIR` only, so that whatever setuptools, torch or the environment variables
do to a process, they do to one that ends with the build.
"""

import os
import platform
import shutil
import sys
import time

from fcos_core.build import compiler, cuda, findings, flags, hostcc, jobs, sources, stamp, units
from fcos_core.build.errors import BuildError

# below the folder for object files
_UNITS = "units"


class MissingObjects(BuildError):
    """The compiler was said to have run, but left no object files."""


def compile_library(csrc, output, temporary):
    """Compile the library against the torch of this process.

    Args:
        csrc (str): the source folder.
        output (str): folder for the library and its stamp; made if need be.
        temporary (str): folder for object files.

    Returns:
        str: path of the library.

    Raises:
        BuildError: if there is no compiler or no object file; whatever setuptools and torch raise when the compiler
            fails (its own message is on stdout).
    """
    csrc, output, temporary = (os.path.abspath(folder) for folder in (csrc, output, temporary))
    command = compiler.find_compiler()
    description = compiler.describe(command)
    import torch

    hostcc.refuse_too_old(description, compiler.kind(description), torch.__version__)
    plan = cuda.plan(torch)
    nvcc_flags, archs = [], None
    if plan.toolkit is not None:
        archs, nvcc_flags = plan.archs, flags.nvcc_flags() + list(plan.flags)
        cuda.prepare_environment(plan)
    built_for = stamp.collect(sources.source_hash(csrc), description, archs)
    ninja = jobs.find_working_ninja()
    with_ninja = jobs.use_ninja(os.environ, platform.system(), ninja)
    number = jobs.max_jobs(os.environ, jobs.available_cores(), jobs.available_memory())
    # torch calls both by name and reads both from the environment
    os.environ["MAX_JOBS"] = str(number)
    if ninja is not None:
        os.environ["PATH"] = os.pathsep.join([os.path.dirname(ninja), os.environ.get("PATH", "")])
    temporary = os.path.join(temporary, stamp.tool_digest(built_for))
    if command != ["cl"]:
        os.environ["CXX"] = compiler.one_word(command, temporary)
    library_dirs = cuda.link_folders(plan.toolkit.home, temporary) if plan.toolkit is not None else []
    # sources are relative to here, see sources.find
    os.chdir(os.path.dirname(csrc))
    print(
        "building the fcos_core ops for torch {} ({}), Python {}, with {}, {}\n{}: {}".format(
            built_for["torch"],
            "CUDA {}".format(built_for["torch_cuda"]) if built_for["torch_cuda"] != "none" else "CPU",
            platform.python_version(),
            description,
            "ninja and {} jobs".format(number) if with_ninja else "without ninja, one file at a time",
            "CUDA kernels" if archs else "no CUDA kernels",
            plan.why,
        ),
        flush=True,
    )
    started = time.time()
    folder = os.path.join(temporary, _UNITS)
    groups = units.group(sources.host_sources(csrc), number if with_ninja else 1)
    extension = {
        "csrc": csrc,
        "host_sources": units.write(groups, csrc, folder),
        "description": description,
        "nvcc_flags": nvcc_flags,
        "library_dirs": library_dirs,
    }
    try:
        library = _run_build_ext(extension, temporary, with_ninja)
    except MissingObjects as error:
        if not with_ninja or os.environ.get("FCOS_CORE_NINJA"):
            raise
        print("{}\ntrying once more without ninja".format(error), flush=True)
        library = _run_build_ext(extension, temporary, False)
    print("compiled and linked in {:.0f} s".format(time.time() - started), flush=True)
    os.makedirs(output, exist_ok=True)
    target = os.path.join(output, stamp.library_name())
    partial = "{}.{}".format(target, os.getpid())
    shutil.copyfile(library, partial)
    os.replace(partial, target)
    stamp.write(built_for, target)
    return target


def make_extension(csrc, host_sources, description, nvcc_flags, library_dirs=()):
    """Describe the library to setuptools.

    Args:
        csrc (str): the source folder; the current folder is its parent.
        host_sources (list[str]): what the host compiler reads, as from `units.write`.
        description (str): what the compiler says about itself.
        nvcc_flags (list[str]): flags for the CUDA sources, empty for a library without CUDA kernels.
        library_dirs (list[str]): where the linker looks besides.

    Returns:
        setuptools.Extension: with torch's include and library folders.
    """
    import torch
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    family = compiler.kind(description)
    openmp = "parallel backend: OpenMP" in torch.__config__.parallel_info()
    extension = CUDAExtension if nvcc_flags else CppExtension
    return extension(
        "fcos_core._ext",
        # nvcc takes longest, so it starts first
        (sources.cuda_sources(csrc) if nvcc_flags else []) + host_sources,
        include_dirs=[csrc],
        library_dirs=list(library_dirs),
        define_macros=[("WITH_CUDA", None)] if nvcc_flags else [],
        depends=sources.headers(csrc),
        extra_compile_args={"cxx": flags.cxx_flags(family, openmp), "nvcc": nvcc_flags},
        extra_link_args=flags.link_flags(family, openmp),
    )


def _run_build_ext(extension, temporary, with_ninja):
    from setuptools import Distribution

    distribution = Distribution({"name": "fcos_core", "ext_modules": [make_extension(**extension)]})
    command = checked_build_ext(os.path.join(temporary, _UNITS))(distribution, use_ninja=with_ninja)
    command.build_temp = temporary
    command.build_lib = os.path.join(temporary, "lib")
    # without ninja, setuptools would keep a library that is newer than the sources though torch has changed
    command.force = True
    command.ensure_finalized()
    command.run()
    return os.path.abspath(command.get_ext_fullpath("fcos_core._ext"))


def checked_build_ext(folder):
    """Return torch's build command with a look at the object files before they are linked.

    Args:
        folder (str): that of `units.write`.
    """
    from torch.utils.cpp_extension import BuildExtension

    class CheckedBuildExtension(BuildExtension):
        def build_extension(self, ext):
            link, names = self.compiler.link_shared_object, self.compiler.object_filenames

            def checked_link(objects, *arguments, **keywords):
                check_objects(objects, self.use_ninja)
                return link(objects, *arguments, **keywords)

            self.compiler.link_shared_object = checked_link
            self.compiler.object_filenames = units.with_short_names(names, folder)
            try:
                super().build_extension(ext)
            finally:
                self.compiler.link_shared_object, self.compiler.object_filenames = link, names

    return CheckedBuildExtension


def check_objects(objects, with_ninja):
    """Stop before the link if an object file is missing.

    setuptools and torch hand the linker the names that they computed, without looking; the linker's own message
    (LNK1181, "cannot find file") then hides that the compiler never ran.

    Args:
        objects (list[str]): paths of the object files.
        with_ninja (bool): whether ninja ran the compilers.

    Raises:
        MissingObjects: naming those that are not there and the likely causes.
    """
    missing = [name for name in objects if not os.path.isfile(name)]
    if not missing:
        return
    raise MissingObjects("check_objects: {}".format(findings.objects_missing(missing, with_ninja)))


def main(csrc, output, temporary):
    """Compile for the command line; errors of ours in one line, others with their traceback."""
    try:
        print(compile_library(csrc, output, temporary))
    except BuildError as error:
        print("fcos_core.build: {}".format(error), flush=True)
        return 1
    sys.stdout.flush()
    return 0
