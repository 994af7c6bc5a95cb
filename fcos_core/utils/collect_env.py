"""A few lines on the software and hardware of this run, for the head of a log."""

import os
import platform
import sys

import numpy
import torch


def get_pil_version():
    """One line with the version of Pillow."""
    try:
        import PIL
    except ImportError:
        return "Pillow: not installed"
    return "Pillow: {}".format(PIL.__version__)


def collect_env_info():
    """What ran where: versions of Python, torch, NumPy, Pillow, CUDA and cuDNN, and the processors.

    Returns:
        str: some lines. Nothing is executed or downloaded to find out, so it takes no time.
    """
    lines = [
        "Python: {} ({})".format(sys.version.split()[0], platform.platform()),
        "torch: {} (built with CUDA {})".format(torch.__version__, torch.version.cuda),
        "NumPy: {}".format(numpy.__version__),
        get_pil_version(),
        "CPU: {} cores, {} threads for torch".format(os.cpu_count(), torch.get_num_threads()),
    ]
    if torch.cuda.is_available():
        lines.append("cuDNN: {}".format(torch.backends.cudnn.version()))
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            lines.append(
                "GPU {}: {}, sm_{}{}, {} MB".format(
                    index, properties.name, properties.major, properties.minor, properties.total_memory // 2**20
                )
            )
    else:
        lines.append("GPU: none that torch can use")
    return "\n".join(lines)
