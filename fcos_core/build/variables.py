"""The environment variables that the build and the package read, each with its meaning; the doctor shows those set."""

# name -> what it does
VARIABLES = {
    "FCOS_CORE_CACHE": "folder for libraries that are built at first use",
    "FCOS_CORE_NINJA": "1 or 0: compile with or without ninja (default: with, on Windows without)",
    "FCOS_CORE_FALLBACK": "0: an error where operators cannot be compiled; 1: never compile, take those of torch",
    "FORCE_CUDA": "1: CUDA kernels also where torch sees no GPU; 0: none",
    "TORCH_CUDA_ARCH_LIST": "GPU architectures to compile for, such as 8.6 or '7.5;8.6+PTX'",
    "CUDA_HOME": "the CUDA toolkit to compile with, if its major version is that of torch",
    "CUDA_PATH": "the same, as the installer of Windows sets it",
    "CXX": "the C++ compiler; may hold a launcher, such as 'ccache g++'",
    "CC": "the host compiler of nvcc, if nvcc takes it",
    "NVCC_CCBIN": "the host compiler of nvcc; then no other one is looked for",
    "NVCC_PREPEND_FLAGS": "flags that nvcc reads by itself",
    "NVCC_APPEND_FLAGS": "flags that nvcc reads by itself",
    "CFLAGS": "appended to the flags of the C++ compiler",
    "CXXFLAGS": "appended to the flags of the C++ compiler",
    "MAX_JOBS": "compilers at a time (default: by processors and free memory)",
    "TORCH_BUILD_ENV": "the environment whose torch to build against, for front ends that hide it",
    "FCOS_CORE_DATA": "folder of the data sets that catalog names mean (default: datasets)",
    "FCOS_CORE_TRACEBACK": "1: the tools show the whole traceback of an error that they otherwise say in a sentence",
    "FCOS_CORE_UNSAFE_PICKLE": "1: load weight files that name code; only for files that you trust",
    "TORCH_DETECTRON_ENV_MODULE": "a Python file whose setup_environment() the tools call first",
    "CUDA_VISIBLE_DEVICES": "the GPUs that torch may see",
    "LD_LIBRARY_PATH": "folders that are searched for libraries before those of torch",
    "PYTHONPATH": "folders that are searched for modules first",
}


def of(environ):
    """Pick the variables of this list, and CUDA_PATH_V11_3 and its kin, that are set.

    Args:
        environ (dict): environment variables.

    Returns:
        dict[str, str]: sorted by name.
    """
    return {name: environ[name] for name in sorted(environ) if name in VARIABLES or name.startswith("CUDA_PATH_V")}
