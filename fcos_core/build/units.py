"""Several sources as one: what the compiler reads at a time.

Half of the time that a source with operators takes goes into torch's headers.  With two processors it is better spent
once per processor than once per source; with many, each source alone is done sooner.
"""

import os

from fcos_core.build.errors import BuildError

# Kernels of the CPU: they read none of torch's headers.
_KERNELS = "_cpu.cpp"
# One compiler that reads half of the sources takes as much memory as one is expected to, see jobs.BYTES_PER_JOB.
_AT_LEAST = 2


def group(sources, number):
    """Divide the sources that read torch's headers into groups.

    Args:
        sources (list[str]): as from `sources.host_sources`.
        number (int): how many groups may be compiled at a time.

    Returns:
        list[list[str]]: the groups, about alike, then each of the other sources alone.
    """
    alone = [source for source in sources if source.endswith(_KERNELS)]
    others = [source for source in sources if not source.endswith(_KERNELS)]
    number = max(_AT_LEAST, number)
    groups = [others[first::number] for first in range(number)]
    return [members for members in groups if members] + [[source] for source in alone]


def write(groups, csrc, folder):
    """Write a source that includes its members for each group of several.

    Args:
        groups (list[list[str]]): as from `group`.
        csrc (str): the source folder, among the include folders of the compiler.
        folder (str): where to write; made if need be.  A file that is there already and right stays as it is, so that
            a build that was interrupted goes on.

    Returns:
        list[str]: a path for each group, that of its only member or of the file written for it.

    Raises:
        BuildError: if a file cannot be written.
    """
    parent = os.path.dirname(os.path.abspath(csrc))
    paths = []
    for number, members in enumerate(groups):
        if len(members) == 1:
            paths.append(members[0])
            continue
        names = [os.path.relpath(os.path.join(parent, member), csrc).replace(os.sep, "/") for member in members]
        text = "".join('#include "{}"\n'.format(name) for name in names)
        path = os.path.join(folder, "unit_{}.cpp".format(number))
        try:
            os.makedirs(folder, exist_ok=True)
            _write_if_changed(path, text)
        except OSError as error:
            raise BuildError(
                "write: expected to write {}, got {}; free space, or name another folder".format(path, error)
            ) from error
        paths.append(path)
    return paths


def _write_if_changed(path, text):
    if os.path.isfile(path):
        with open(path) as stream:
            if stream.read() == text:
                return
    with open(path, "w") as stream:
        stream.write(text)


def with_short_names(object_filenames, folder):
    """Wrap a compiler's `object_filenames` so that objects of files in a folder lie beside those of csrc.

    Left to itself, it would nest the folder's own path below the build folder, which breaks the path limit of Windows.

    Args:
        object_filenames (callable): of a distutils compiler.
        folder (str): that of `write`.

    Returns:
        callable: in its place.
    """
    folder = os.path.join(os.path.abspath(folder), "")

    def short(source_filenames, *arguments, **keywords):
        names = []
        for name in source_filenames:
            absolute = os.path.abspath(name)
            names.append("csrc/" + os.path.basename(name) if absolute.startswith(folder) else name)
        return object_filenames(names, *arguments, **keywords)

    return short
