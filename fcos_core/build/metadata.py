"""The project's metadata for a setuptools that does not read `[project]` itself (before 61).

There is one source of it, pyproject.toml.  Python 3.7 to 3.10 have no TOML parser, so this reads the part of the
format that our own file uses: strings, and lists of strings with comments, which are also valid Python.
"""

import ast
import os
import re


def setuptools_reads_pyproject(version):
    """Tell whether this version of setuptools (str) reads `[project]`."""
    return int(version.split(".")[0]) >= 61


def read(root):
    """Read the metadata.

    Args:
        root (str): folder of pyproject.toml.

    Returns:
        dict: keywords for `setuptools.setup`.
    """
    with open(os.path.join(root, "pyproject.toml"), encoding="utf-8") as stream:
        text = stream.read()
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
        "install_requires": project["dependencies"],
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
