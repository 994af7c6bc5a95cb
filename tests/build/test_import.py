"""Importing the package, and its build part, costs nothing."""

import os
import subprocess
import sys

import pytest

from fcos_core.build import sources

ROOT = os.path.dirname(sources.PACKAGE_DIR)
HEAVY = ("torch", "numpy", "setuptools", "cv2", "yacs")


@pytest.mark.parametrize("module", ["fcos_core", "fcos_core.build", "fcos_core.build.worker"])
def test_import_brings_in_nothing_heavy(module):
    script = "import sys; sys.path.insert(0, {!r}); import {}; print([m for m in {!r} if m in sys.modules])".format(
        ROOT, module, HEAVY
    )
    # -S: setuptools' own start-up file in site-packages would count, too
    output = subprocess.check_output([sys.executable, "-S", "-c", script], universal_newlines=True)
    assert output.strip() == "[]"


def test_compiled_functions_are_reached_through_the_package():
    pytest.importorskip("torch")
    import fcos_core

    assert callable(fcos_core._C.nms)
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        fcos_core.nowhere  # noqa: B018
