"""A machine on which all is well, as plain facts; a test changes what it is about."""

from fcos_core.build import hostcc
from fcos_core.build.facts import Driver, Facts, Gpu, Library, Package, Tools, Torch
from fcos_core.build.toolkits import Toolkit

CU102 = ("sm_37", "sm_50", "sm_60", "sm_70")
CU121 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
RTX3060 = Gpu("NVIDIA GeForce RTX 3060", 86, 12 * 2**30)
GOOD_TORCH = Torch(
    version="2.4.1+cu121", cuda="12.1", cxx11_abi=False, archs=CU121, folder="/env/torch", gpus=(RTX3060,)
)
GOOD_LIBRARY = Library(path="/cache/_ext.so", kernels="cuda", archs="86+PTX", compiler="g++ 11.4.0", plan="all is well")
CUDA_12_1 = Toolkit("/usr/local/cuda-12.1", (12, 1), "usual place")
GOOD_TOOLS = Tools(
    toolkits=(CUDA_12_1,),
    compiler="g++ (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0",
    compiler_kind="gcc",
    ninja="/usr/bin/ninja",
    ninja_version="1.11.1",
    setuptools="69.5.1",
)
GOOD = Facts(
    python=(3, 10, 12),
    executable="/env/bin/python",
    torch=GOOD_TORCH,
    driver=Driver("535.183.01", (12, 2), (RTX3060,)),
    pci_gpus=1,
    packages={"numpy": Package("1.26.4")},
    library=GOOD_LIBRARY,
    tools=GOOD_TOOLS,
    host=hostcc.Choice(True),
    host_default="gcc 11.4",
)


def machine(torch=None, tools=None, library=None, **changes):
    """The good machine, changed.

    Args:
        torch, tools, library (dict): changes to fields of these three.
        **changes: fields of `Facts`, which win.
    """
    parts = {
        "torch": GOOD_TORCH._replace(**(torch or {})),
        "tools": GOOD_TOOLS._replace(**(tools or {})),
        "library": GOOD_LIBRARY._replace(**(library or {})),
    }
    return GOOD._replace(**dict(parts, **changes))
