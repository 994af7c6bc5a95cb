"""A user's own set-up code, run before anything else.

Legacy: importing this module runs it, because old scripts import it for nothing else; without the environment variable
TORCH_DETECTRON_ENV_MODULE nothing happens.
"""

import os

from fcos_core.utils.imports import import_file

_done = False


def setup_environment():
    """Run the module named by TORCH_DETECTRON_ENV_MODULE, once per process; without that variable nothing happens.

    The tools call this first.
    """
    global _done
    if _done:
        return
    _done = True
    path = os.environ.get("TORCH_DETECTRON_ENV_MODULE")
    if path:
        setup_custom_environment(path)


def setup_custom_environment(custom_module_path):
    """Import the Python file at `custom_module_path` and call its `setup_environment()`.

    Raises:
        ValueError: the file has no callable of that name.
    """
    module = import_file("fcos_core.utils.env.custom_module", custom_module_path)
    if not callable(getattr(module, "setup_environment", None)):
        raise ValueError(
            "setup_custom_environment: expected a function setup_environment in the file, got none in {}; define it or "
            "unset TORCH_DETECTRON_ENV_MODULE".format(custom_module_path)
        )
    module.setup_environment()


setup_environment()
