"""Importing a Python file by its path."""

import importlib.util
import sys


def import_file(module_name, file_path, make_importable=None):
    """Run the Python file at `file_path` and return it as a module.

    Args:
        module_name (str): the name that the module gets.
        file_path (str): path of a .py file.
        make_importable (bool): also enter it into `sys.modules`, so that later `import module_name` finds it.
    """
    spec = importlib.util.spec_from_file_location(module_name, file_path)
    if spec is None:
        raise ImportError(
            f"import_file: expected file_path to be a Python file, got {file_path!r}; give the path of a .py file"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if make_importable:
        sys.modules[module_name] = module
    return module
