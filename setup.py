"""Install fcos_core; with torch in the environment, compile its operators against exactly that torch.

The metadata stands in pyproject.toml; everything about the compiled part in fcos_core/build, which the build at first
use shares.  `python setup.py clean` leaves the tree as it was cloned.
"""

import os
import sys

from setuptools import setup

ROOT = os.path.dirname(os.path.abspath(__file__))
# this fcos_core, not one that is installed
sys.path.insert(0, ROOT)
# source paths are relative, see fcos_core/build/sources.py
os.chdir(ROOT)

from fcos_core.build.commands import setup_arguments  # noqa: E402

setup(**setup_arguments(ROOT))
