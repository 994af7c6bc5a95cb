"""Finding the torch of the environment that is installed into, from inside an isolated build.

pip builds in the same interpreter with its site-packages taken off `sys.path`; uv and `python -m build` make another
environment.  In both, torch is one folder away, and a second torch in the build environment would give a library for
the wrong one.  So the outer folders are put at the END of `sys.path`: the build's own setuptools keeps precedence.
"""

import os
import site
import sys
import sysconfig


def expose_torch(environ=os.environ, path=None):
    """Make torch importable if there is one; does not import it.

    Args:
        environ (dict): environment variables: TORCH_BUILD_ENV names the environment to take; without it, what is
            importable already comes first, then the environment of this interpreter, the activated one, and those
            along PATH.
        path (list[str] or None): the search path to extend, by default `sys.path`.

    Returns:
        str or None: the folder that holds torch, None if none was found.
    """
    path = sys.path if path is None else path
    asked = environ.get("TORCH_BUILD_ENV")
    if not asked and _holding_torch(path):
        return _holding_torch(path)
    for folders in [_site_folders(asked)] if asked else _environments(environ):
        found = _holding_torch(folders)
        if found:
            # all of them: what torch imports may lie in another folder than torch
            path.extend(folder for folder in folders if folder not in path)
            return found
    return None


def _environments(environ):
    """Yield the site folders of each environment that may be the one installed into, best guess first."""
    own = _site_folders(sys.prefix) + [sysconfig.get_paths()["platlib"], sysconfig.get_paths()["purelib"]]
    if sys.prefix == sys.base_prefix:
        own.append(site.getusersitepackages())
    yield [folder for folder in own if os.path.isdir(folder)]
    for root in (environ.get("VIRTUAL_ENV"), environ.get("CONDA_PREFIX")):
        if root:
            yield _site_folders(root)
    for entry in environ.get("PATH", "").split(os.pathsep):
        # PATH also names the Pythons of the system: only take environments
        if os.path.isfile(os.path.join(os.path.dirname(entry), "pyvenv.cfg")):
            yield _site_folders(os.path.dirname(entry))


def _site_folders(root):
    """List the folders that an environment imports from: its own, those its `.pth` files name, and its base's."""
    tail = os.path.join("lib", "python{}.{}".format(*sys.version_info[:2]), "site-packages")
    if os.name == "nt":
        tail = os.path.join("Lib", "site-packages")
    own = os.path.join(root, tail)
    folders = [own]
    if os.path.isdir(own):
        for name in sorted(os.listdir(own)):
            if name.endswith(".pth"):
                folders += _pth_folders(own, name)
    config = os.path.join(root, "pyvenv.cfg")
    if os.path.isfile(config):
        with open(config, errors="replace") as stream:
            pairs = [line.split("=", 1) for line in stream if "=" in line]
        values = {key.strip().lower(): value.strip() for key, value in pairs}
        if values.get("include-system-site-packages", "").lower() == "true" and "home" in values:
            base = values["home"] if os.name == "nt" else os.path.dirname(values["home"])
            folders.append(os.path.join(base, tail))
    return [folder for folder in folders if os.path.isdir(folder)]


def _pth_folders(folder, name):
    with open(os.path.join(folder, name), errors="replace") as stream:
        lines = [line.strip() for line in stream]
    return [os.path.join(folder, line) for line in lines if line and not line.startswith(("import ", "import\t", "#"))]


def _holding_torch(folders):
    for folder in folders:
        if folder and os.path.isfile(os.path.join(folder, "torch", "__init__.py")):
            return folder
    return None
