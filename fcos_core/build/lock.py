"""A lock between processes, held by an open file: the system frees it when the holder dies."""

import errno
import os
import time

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class FileLock:
    """Hold a lock for the length of a `with` block.

    On a file system without locks (some network ones) the block runs unlocked; whoever uses this must stay correct
    then, if slower: write to a folder of one's own, then rename.

    Args:
        path (str): the lock file; made if need be, never removed.
        on_wait (callable or None): called once, without arguments, when another process holds the lock.

    Attributes:
        waited (bool): whether another process held the lock first.
        held (bool): whether this one holds it; False outside the block, or where the file system has no locks.
    """

    POLL_SECONDS = 0.1

    def __init__(self, path, on_wait=None):
        self.path = path
        self.on_wait = on_wait
        self.waited = False
        self.held = False
        self._file = None

    def __enter__(self):
        self._file = open(self.path, "a+")
        while True:
            try:
                _lock(self._file)
                self.held = True
                return self
            except OSError as error:
                if error.errno not in _BUSY:
                    return self
            if not self.waited:
                self.waited = True
                if self.on_wait is not None:
                    self.on_wait()
            time.sleep(self.POLL_SECONDS)

    def __exit__(self, *exception):
        # closing frees the lock; a child process does not inherit the file
        self._file.close()
        self.held = False


def _lock(stream):
    if fcntl is not None:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        os.lseek(stream.fileno(), 0, os.SEEK_SET)
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
