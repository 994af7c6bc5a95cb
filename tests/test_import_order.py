"""The direction of imports that fcos_core/README.md promises, read from the sources."""
import ast
import os

import pytest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fcos_core")

# folder -> what it may import of this package, beside itself
ALLOWED = {
    # the findings of the pre-flight, which the build and the doctor share
    "utils": {"build"},
    "build": set(),
    "config": set(),
    "layers": {"build"},
    "structures": {"layers"},
    # from config: which dense head is on
    "modeling": {"layers", "structures", "utils", "config"},
    "solver": {"utils"},
    # from build: the lock that several processes making the built-in data set wait for; from config: the catalog
    "data": {"structures", "utils", "build", "layers", "config"},
    "engine": {"data", "solver", "modeling", "structures", "layers", "utils", "config", "visualize"},
}


def imports_of(path, package):
    """Names below fcos_core that the file imports, as lists of parts."""
    with open(path, encoding="utf-8") as f:
        tree = ast.parse(f.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = base + (node.module.split(".") if node.module else [])
            names = [".".join(prefix + [alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "fcos_core" and len(parts) > 1:
                yield parts[1:]


def sources(folder):
    for directory, _, files in os.walk(os.path.join(ROOT, folder)):
        for name in sorted(files):
            if name.endswith(".py"):
                relative = os.path.relpath(directory, os.path.dirname(ROOT))
                yield os.path.join(directory, name), relative.split(os.sep)


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_direction_of_imports(folder):
    found = list(sources(folder))
    assert found
    for path, package in found:
        for parts in imports_of(path, package):
            assert parts[0] == folder or parts[0] in ALLOWED[folder], "{} imports {}".format(path, ".".join(parts))


def test_the_engine_names_no_dense_head():
    for path, package in sources("engine"):
        for parts in imports_of(path, package):
            assert "rpn" not in parts, path


def test_only_tools_read_the_global_config():
    for folder in sorted(set(ALLOWED) - {"config"}):
        for path, package in sources(folder):
            for parts in imports_of(path, package):
                assert parts[:2] != ["config", "cfg"], path


def test_every_folder_is_covered():
    folders = {name for name in os.listdir(ROOT) if os.path.exists(os.path.join(ROOT, name, "__init__.py"))}
    assert folders == set(ALLOWED)
