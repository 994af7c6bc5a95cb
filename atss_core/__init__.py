"""The other name of `fcos_core`: `atss_core.x.y` is the module `fcos_core.x.y`, the very same object.

Only the configuration is its own (`atss_core.config`): the defaults of the two predecessors differ. Importing this
package imports nothing heavy, as ever with `fcos_core`.
"""

from atss_core import _alias
from fcos_core import __version__

__all__ = ["__version__"]

_alias.install()


def __getattr__(name):
    # the compiled functions, after a plain `import atss_core`
    if name == "_C":
        import importlib

        return importlib.import_module("atss_core._C")
    raise AttributeError("module 'atss_core' has no attribute '{}'".format(name))
