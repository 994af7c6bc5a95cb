"""Small file helpers."""

import os
import tempfile


def mkdir(path):
    """Create a folder and its parents; an existing one is fine."""
    os.makedirs(path, exist_ok=True)


def write_atomically(path, write):
    """Write a file so that a reader, or the next run after a crash, sees either the old content or all of the new one.

    The content goes to a temporary file in the same folder, is flushed to the disk and takes the final name in one
    step.

    Args:
        path (str): the file to write.
        write (callable): gets the temporary file, opened for binary writing, and fills it.
    """
    folder = os.path.dirname(path) or "."
    handle, temporary = tempfile.mkstemp(prefix=os.path.basename(path) + ".", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private; others may want to read a checkpoint
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def _umask():
    """The umask of the process; the system offers no way to read it without setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
