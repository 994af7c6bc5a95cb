"""The folder that keeps libraries built at first use."""

import os
import shutil
import sys


def cache_dir(environ=os.environ, system=sys.platform, home=None):
    """Return the cache folder of the package.

    Args:
        environ (dict): environment variables: FCOS_CORE_CACHE wins; then the one of the platform.
        system (str): `sys.platform`.
        home (str or None): the user's folder.

    Returns:
        str: absolute path; need not exist.
    """
    home = home or os.path.expanduser("~")
    if environ.get("FCOS_CORE_CACHE"):
        return os.path.abspath(os.path.expanduser(environ["FCOS_CORE_CACHE"]))
    if system == "win32":
        base = environ.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local")
    elif system == "darwin":
        base = os.path.join(home, "Library", "Caches")
    else:
        # the specification says that a relative path is to be ignored
        base = environ.get("XDG_CACHE_HOME", "")
        base = base if os.path.isabs(base) else os.path.join(home, ".cache")
    return os.path.join(base, "fcos_core")


def libraries_dir():
    """Return the folder below which each library has a folder named by its stamp."""
    return os.path.join(cache_dir(), "extensions")


def clear():
    """Remove all libraries built at first use.

    Returns:
        str or None: the folder that was removed, None if there was none.
    """
    folder = libraries_dir()
    if not os.path.isdir(folder):
        return None
    shutil.rmtree(folder)
    return folder
