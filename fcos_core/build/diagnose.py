"""Which findings describe a machine, in order of weight, and the verdict in one sentence.

Pure: `facts.Facts` in, findings out.  The pre-flight of a run asks `gpu_code` alone.
"""

import re

from fcos_core.build import arch, facts, findings, hostcc, releases, toolkits
from fcos_core.build.findings import LIMITS, NOTE, STOPS


def diagnose(known, cpu_only=False):
    """List what stands in the way of a training, or is good to know.

    Args:
        known (facts.Facts): about the machine.
        cpu_only (bool): judge a training with MODEL.DEVICE cpu: nothing about GPUs matters then.

    Returns:
        list[Finding]: gravest first.
    """
    about_torch = _about_torch(known)
    about_gpu = _about_gpu(known)
    about_tools = _about_tools(known)
    about_library = _about_library(known, [finding for finding in about_tools if finding.weight == STOPS])
    if known.environ.get("FCOS_CORE_FALLBACK") != "0" and known.environ.get("FORCE_CUDA") != "1":
        # what keeps a build from working costs speed, since operators that need none serve instead
        about_tools = _at_most(LIMITS, about_tools)
        about_library = [f if f.name == "library-refused" else _at_most(LIMITS, [f])[0] for f in about_library]
    about_cuda = _about_cuda(known)
    if cpu_only:
        about_gpu, about_cuda = _at_most(NOTE, about_gpu), _at_most(NOTE, about_cuda)
        about_library = [f._replace(weight=NOTE) if f.name == "library-without-cuda" else f for f in about_library]
    if not _will_build(known):
        about_tools, about_cuda = _at_most(NOTE, about_tools), _at_most(NOTE, about_cuda)
    elif known.library is not None and known.library.path:
        # one that fits is there, a better one cannot be built
        about_tools = _at_most(LIMITS, about_tools)
    found = about_torch + about_gpu + _about_packages(known) + about_tools + about_cuda + about_library
    return findings.in_order(found + _about_environment(known))


def _at_most(weight, found):
    order = findings.WEIGHTS.index
    return [finding._replace(weight=max(finding.weight, weight, key=order)) for finding in found]


def _will_build(known):
    """Whether a library is to be built: there is none that fits, or none with the kernels of the GPU."""
    if known.library is None or known.library.reason or known.library.error:
        return True
    return bool(known.torch.gpus) and known.library.kernels == "cpu"


def verdict(known, found, cpu_only=False):
    """Say in one sentence whether training works, and what to type if not.

    Args:
        known (facts.Facts): about the machine.
        found (list[Finding]): what `diagnose` returned, and failures of the self-test.
        cpu_only (bool): as for `diagnose`.

    Returns:
        tuple[bool, str]: whether it works, and the sentence, without a full stop: it may end with a command.
    """
    found = findings.in_order(found)
    if found and found[0].weight == STOPS:
        return False, "Training would not work: {}".format(found[0])
    gpus = known.torch.gpus if known.torch and not cpu_only else ()
    where = " and ".join(sorted({gpu.name for gpu in gpus})) or "the CPU (MODEL.DEVICE cpu)"
    unbuilt = any(finding.name == "library-unbuilt" for finding in found)
    text = "Training works on {}{}".format(where, "; the operators are built at first use" if unbuilt else "")
    if found and found[0].weight == LIMITS:
        return True, "{}, but {}".format(text, found[0])
    return True, text


# ---- torch


def _about_torch(known):
    torch = known.torch
    command = _torch_command(known, upgrade=torch is not None)
    if torch is None:
        return [findings.torch_missing(known.executable, command)]
    if torch.unanswered:
        return [findings.torch_unanswering(facts.probe.SECONDS)]
    if torch.error:
        return [findings.torch_broken(torch.error, command, "LD_LIBRARY_PATH" in known.environ)]
    if _numbers(torch.version) < (1, 7):
        return [findings.torch_too_old(torch.version, command)]
    return []


def _torch_command(known, upgrade):
    """The command for a torch that serves this machine."""
    gpus = known.torch.gpus if known.torch and known.torch.gpus else known.driver.gpus if known.driver else ()
    archs = [gpu.arch for gpu in gpus if gpu.arch]
    if not gpus:
        return releases.command(known.python, upgrade=upgrade)
    # of an unknown GPU of a driver at hand, one that most have
    return releases.command(known.python, max(archs) if archs else 75, known.driver and known.driver.cuda, upgrade)


def _numbers(version):
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


# ---- GPU


def _about_gpu(known):
    torch, driver = known.torch, known.driver
    if known.pci_gpus and driver is None and not (torch and torch.hip):
        return [findings.driver_missing(known.pci_gpus)]
    if torch is None or torch.error or torch.hip:
        return []
    found = []
    listed = driver.gpus[0].name if driver and driver.gpus else ""
    command = _torch_command(known, upgrade=True)
    if torch.cuda is None:
        return [findings.torch_cpu_build(torch.version, listed, command)] if listed else []
    if driver and driver.cuda and _numbers(torch.cuda)[0] > driver.cuda[0]:
        cuda = "{}.{}".format(*driver.cuda)
        return [findings.driver_too_old(driver.version, cuda, torch.cuda, command)]
    if listed and not torch.gpus:
        hidden = known.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None and hidden.strip() in ("", "-1"):
            return [findings.gpu_hidden(hidden)]
        return [findings.gpu_unusable(listed, torch.gpu_error)]
    for number in sorted({gpu.arch for gpu in torch.gpus}):
        driver_cuda = driver.cuda if driver else None
        found.append(gpu_code(number, torch.archs, torch.version, torch.cuda, known.python, driver_cuda))
    return [finding for finding in found if finding is not None]


def gpu_code(number, arch_list, torch_version, torch_cuda, python, driver_cuda=None):
    """Compare a GPU with the code that a torch build carries.

    Args:
        number (int): architecture of the GPU, such as 86.
        arch_list (list[str]): what the build carries: "sm_86" is machine code, "compute_86" PTX.
        torch_version, torch_cuda (str): of the build.
        python (tuple[int, int]): version, for a torch to install instead.
        driver_cuda (tuple[int, int] or None): what the driver serves, for the same.

    Returns:
        Finding or None: None if there is machine code for the GPU.
    """
    served = arch.served_by_names(arch_list, number)
    if served == "binary":
        return None
    build = "torch {} (CUDA {}, {})".format(torch_version, torch_cuda, " ".join(arch_list) or "no architectures")
    remedy = releases.command(python, number, driver_cuda, upgrade=True)
    if "MODEL.DEVICE cpu" not in remedy:
        remedy += ", or run with MODEL.DEVICE cpu"
    kind = findings.gpu_ptx_only if served == "ptx" else findings.gpu_without_code
    return kind(build, "sm_{}".format(number), remedy)


# ---- packages


def _about_packages(known):
    found = []
    for name, (pip_name, needed_for, stops) in facts.PACKAGES.items():
        package = known.packages.get(name, facts.Package(version="unknown"))
        if re.match(r"ModuleNotFoundError: No module named '{}'".format(name), package.error):
            found.append(findings.package_missing(name, pip_name, needed_for, stops))
        elif package.error:
            found.append(findings.package_broken(name, pip_name, package.error, needed_for, stops))
    numpy = known.packages.get("numpy", facts.Package())
    torch = known.torch
    if torch and not torch.error and numpy.version and torch.numpy_error:
        if _numbers(numpy.version)[0] >= 2 and _numbers(torch.version) < (2, 3):
            found.append(findings.numpy_too_new(numpy.version, torch.version))
        else:
            found.append(findings.package_broken("numpy with torch", "numpy", torch.numpy_error, "everything", True))
    return found


# ---- building


def _about_tools(known):
    """What would keep any build from working, or is odd about it."""
    tools, torch, found = known.tools, known.torch, []
    if not tools.compiler:
        # on Windows setuptools finds cl where it is not on PATH
        found.append(findings.no_compiler()._replace(weight=LIMITS if known.system == "Windows" else STOPS))
    elif torch and torch.version:
        found.append(hostcc.too_old(tools.compiler, tools.compiler_kind, torch.version))
    if not tools.setuptools:
        found.append(findings.setuptools_missing())
    elif torch and (1, 8) <= _numbers(torch.version or "0") <= (2, 1) and not tools.has_pkg_resources:
        found.append(findings.setuptools_too_new(torch.version))
    if tools.python_headers:
        found.append(findings.python_headers_missing(tools.python_headers))
    if tools.ninja and not tools.ninja_version:
        found.append(findings.ninja_broken(tools.ninja, tools.ninja_output))
    elif not tools.ninja and known.system != "Windows":
        found.append(findings.ninja_missing())
    if tools.ninja_edited:
        found.append(findings.ninja_edited(torch.version if torch else ""))
    return [finding for finding in found if finding is not None]


def _about_cuda(known):
    """What would keep a build from having CUDA kernels, or is odd about them; only where they are wanted."""
    torch, found = known.torch, []
    forced = known.environ.get("FORCE_CUDA", "")
    if not torch or not torch.cuda or not (torch.gpus or forced == "1"):
        return []
    if forced == "0":
        return [findings.cuda_forbidden()]
    taken, _ = toolkits.choose(known.tools.toolkits, torch.cuda)
    if taken is None:
        return [findings.no_toolkit(torch.cuda, known.tools.toolkits)]
    if taken.version != _numbers(torch.cuda):
        found.append(findings.toolkit_minor(taken, torch.cuda))
    if known.host is not None and known.host.finding is not None:
        found.append(known.host.finding)
    asked = known.environ.get("TORCH_CUDA_ARCH_LIST", "")
    for number in sorted({gpu.arch for gpu in torch.gpus}) if asked.strip() else []:
        if not arch.covers(arch.parse(asked), number):
            found.append(findings.archs_leave_out(asked, number))
    return found


# ---- library and environment


def _about_library(known, obstacles):
    library, torch = known.library, known.torch
    if library is None:
        return []
    if library.error:
        return [findings.library_refused(library.error)]
    if not library.reason:
        if torch.gpus and torch.cuda and library.kernels == "cpu":
            return [findings.library_without_cuda(library.plan)]
        return []
    if not library.has_sources:
        return [findings.no_sources(library.reason)]
    return [findings.no_library(library.reason, can_build=not obstacles)]


def _about_environment(known):
    found = []
    for name in ("CUDA_HOME", "CUDA_PATH"):
        value = known.environ.get(name)
        if value is None or not value.strip():
            continue
        cleaned = toolkits.clean(value)
        if cleaned != value and not value.startswith("~"):
            found.append(findings.stray_characters(name, value, cleaned))
        if cleaned and not any(toolkit.origin == name for toolkit in known.tools.toolkits):
            # the same folder under another name is listed once
            if all(toolkit.home != cleaned for toolkit in known.tools.toolkits):
                found.append(findings.variable_without_nvcc(name, cleaned))
    if known.old_modules:
        found.append(findings.old_module(known.old_modules))
    if known.other_copies:
        found.append(findings.other_copy(known.here, known.other_copies))
    return found
