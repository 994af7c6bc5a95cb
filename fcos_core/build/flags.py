"""Compiler flags, by compiler.  This file is part of the source hash: changing a flag makes built libraries stale.

No `-std` here: torch adds the one that its headers need (C++14 for 1.7, C++17 for 2.1, C++20 for 2.14), and the
sources are valid in all of them.
"""


def cxx_flags(kind, openmp):
    """Flags to compile one host source.

    Args:
        kind (str): "gcc", "clang", "apple-clang" or "msvc".
        openmp (bool): whether torch itself runs `at::parallel_for` on OpenMP; its body is inlined into our code.

    Returns:
        list[str]: flags.
    """
    if kind == "msvc":
        # /bigobj: the templates of several operators fill more than the 65279 sections of a usual object file.
        # No /permissive-: the headers of old torch are not known to stand it; C++20 (torch from 2.13 on) implies it.
        return ["/O2", "/bigobj", "/Zc:__cplusplus"] + (["/openmp"] if openmp else [])
    # -g0: Python's own flags often carry -g, which triples time and size
    flags = ["-O3", "-g0"]
    if kind == "gcc":
        # torch's headers fill a GB; to collect garbage before that takes a tenth of the time and frees little
        flags += ["--param", "ggc-min-expand=300", "--param", "ggc-min-heapsize=1000000"]
    if openmp and kind != "apple-clang":
        flags.append("-fopenmp")
    return flags


def nvcc_flags():
    """Flags to compile one CUDA source; torch adds its architectures and its `-std`.

    No fast-math: sample positions and IoU thresholds must not depend on it.  -lineinfo costs nothing at run time and
    lets profilers and compute-sanitizer name lines.

    Returns:
        list[str]: flags.
    """
    return ["-O3", "-lineinfo"]


def link_flags(kind, openmp):
    """Flags to link the library.

    With gcc, -fopenmp is left out on purpose: the few GOMP symbols stay open and are resolved by the OpenMP runtime
    that torch has loaded (its wheels carry their own, under another name).  Linking would bring in a second runtime
    with threads of its own, to which torch.set_num_threads does not speak.  clang calls another runtime (libomp),
    which torch does not carry, so there it must be linked.

    Args:
        kind (str): as for `cxx_flags`.
        openmp (bool): as for `cxx_flags`.

    Returns:
        list[str]: flags.
    """
    return ["-fopenmp"] if openmp and kind == "clang" else []
