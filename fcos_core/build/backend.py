"""PEP 517 and 660 build backend: setuptools, building against the torch of the environment installed into.

setuptools' own hooks do it all; `setup.py` finds the outer torch (torch_path.py).  What differs: torch is never asked
for as a build requirement.  A second torch in the build environment would give a library for the wrong one, and where
there is none at all the package is installed without the library, which is then built at first use.
"""

import setuptools
from setuptools import build_meta as _setuptools

build_wheel = _setuptools.build_wheel
build_sdist = _setuptools.build_sdist
prepare_metadata_for_build_wheel = _setuptools.prepare_metadata_for_build_wheel


def get_requires_for_build_sdist(config_settings=None):
    """Ask for nothing beyond pyproject.toml."""
    return []


def get_requires_for_build_wheel(config_settings=None):
    """Ask for nothing beyond pyproject.toml."""
    return []


# setuptools 64 and later; without these names pip falls back to `setup.py develop`
if hasattr(_setuptools, "build_editable"):
    build_editable = _setuptools.build_editable
    prepare_metadata_for_build_editable = _setuptools.prepare_metadata_for_build_editable

    def get_requires_for_build_editable(config_settings=None):
        """Ask for nothing beyond pyproject.toml."""
        return []


def __getattr__(name):
    # uv has no other way to go, and shows this
    if name == "build_editable":
        raise AttributeError(
            "setuptools {} makes no editable installation without pip: python -m pip install -U "
            "'setuptools>=64,<80' wheel, then again".format(setuptools.__version__)
        )
    raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))
