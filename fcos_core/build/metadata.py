"""The dependencies, and for a setuptools that does not read `[project]` itself (before 61) all other metadata.

There is one source of it, pyproject.toml.  Python 3.7 to 3.10 have no TOML parser, so this reads the part of the
format that our own file uses: strings, and lists of strings with comments, which are also valid Python.
"""

import ast
import os
import re


def setuptools_reads_pyproject(version):
    """Tell whether this version of setuptools (str) reads `[project]`."""
    return int(version.split(".")[0]) >= 61


# torch before 2.3 was compiled for NumPy 1; newer versions of these are NumPy 2 or insist on it
_BESIDE_OLD_TORCH = {"numpy": "numpy<2", "opencv-python": "opencv-python<4.12"}


def dependencies(root, torch_version=None):
    """List what the package needs.

    Args:
        root (str): folder of pyproject.toml.
        torch_version (str or None): of the environment installed into; None if there is none, or it is not known.
            A torch that is there keeps its place: torchvision, each release of which wants one torch, is then left to
            the user (only bodies by the name of torchvision need it), and NumPy and OpenCV fit the torch.

    Returns:
        list[str]: requirements.
    """
    needed = _values(_section(_text(root), "tool.fcos_core"))["dependencies"]
    numbers = [int(number) for number in re.findall(r"\d+", torch_version or "")[:2]]
    if not numbers:
        return needed
    needed.remove("torchvision")
    return needed if numbers >= [2, 3] else [_BESIDE_OLD_TORCH.get(name, name) for name in needed]


def _text(root):
    with open(os.path.join(root, "pyproject.toml"), encoding="utf-8") as stream:
        return stream.read()


def read(root):
    """Read all metadata but the dependencies.

    Args:
        root (str): folder of pyproject.toml.

    Returns:
        dict: keywords for `setuptools.setup`.
    """
    text = _text(root)
    project = _values(_section(text, "project"))
    scripts = _values(_section(text, "project.scripts"))
    with open(os.path.join(root, "fcos_core", "__init__.py"), encoding="utf-8") as stream:
        version = re.search(r'^__version__ = "(.+)"$', stream.read(), re.MULTILINE).group(1)
    with open(os.path.join(root, project["readme"]), encoding="utf-8") as stream:
        readme = stream.read()
    return {
        "name": project["name"],
        "version": version,
        "description": project["description"],
        "long_description": readme,
        "long_description_content_type": "text/markdown",
        "python_requires": project["requires-python"],
        "classifiers": project["classifiers"],
        "extras_require": _values(_section(text, "project.optional-dependencies")),
        "entry_points": {"console_scripts": ["{} = {}".format(*item) for item in scripts.items()]},
    }


def _section(text, name):
    start = re.search(r"^\[{}\]\n".format(re.escape(name)), text, re.MULTILINE).end()
    end = re.compile(r"^\[", re.MULTILINE).search(text, start)
    return text[start : end.start() if end else len(text)]


def _values(section):
    values = {}
    # a value ends where the next key begins at the start of a line
    for match in re.finditer(r"^([\w-]+) = (.*?)(?=^[\w-]+ = |\Z)", section, re.MULTILINE | re.DOTALL):
        values[match.group(1)] = ast.literal_eval(match.group(2).strip())
    return values
