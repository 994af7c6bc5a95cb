"""Finder that gives every `atss_core.x.y` the module object of `fcos_core.x.y`.

One object, whatever name it is asked for by: a class has one identity, a registry is filled once, a pickle of either
name loads, and patching a function through one name is seen through the other.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys

ALIAS, REAL = "atss_core", "fcos_core"

# what this package has itself
OWN = {ALIAS + "._alias", ALIAS + ".config", ALIAS + ".config.defaults", ALIAS + ".config.paths_catalog"}


class AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and loads the modules below `atss_core` that are aliases."""

    def find_spec(self, fullname, path=None, target=None):
        """A spec with this loader, or None for other modules and those that `fcos_core` has not."""
        if not fullname.startswith(ALIAS + ".") or fullname in OWN:
            return None
        real = importlib.util.find_spec(_real_name(fullname))
        if real is None:
            return None
        return importlib.machinery.ModuleSpec(
            fullname, self, origin=real.origin, is_package=real.submodule_search_locations is not None
        )

    def create_module(self, spec):
        """The module of the real name, imported if it is not yet."""
        module = importlib.import_module(_real_name(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):
        """Nothing to run; the import system has put the alias' spec into the module, which keeps its own.

        So `importlib.reload` and tools that look at `__spec__` work on the real name.
        """
        alias = module.__spec__
        if alias is not None and alias.loader_state is not None:
            module.__spec__ = alias.loader_state
        # The import system sets a module that it loads as an attribute of its package. Where the package has a
        # function of the name by then (`layers.nms`), that would be lost; so what is loaded gets its alias now.
        below = module.__name__ + "."
        for name in [name for name in sys.modules if name.startswith(below)]:
            alias_name = ALIAS + name[len(REAL) :]
            if alias_name not in OWN:
                sys.modules.setdefault(alias_name, sys.modules[name])

    def get_code(self, fullname):
        """Code of the real module, for `python -m atss_core.x`."""
        real = importlib.util.find_spec(_real_name(fullname))
        return real.loader.get_code(real.name)


def _real_name(fullname):
    return REAL + fullname[len(ALIAS) :]


def install():
    """Put the finder before all others, once.

    First, because the folders of `fcos_core` are the path of the aliased packages too: the usual finder would load
    their modules a second time.
    """
    if not any(type(finder).__name__ == AliasFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, AliasFinder())
