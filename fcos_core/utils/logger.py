"""Where log lines go: the terminal and a file, from the main process only."""

import logging
import os
import sys

# One package under several names: an old script sets up the logger of the name by which it imports the package.
_NAMES = ("fcos_core", "atss_core")


def setup_logger(name, save_dir, distributed_rank, filename="log.txt"):
    """Make the logger `name` write to standard output and to a file.

    Loggers below it (`name.trainer`, ...) write there too. Calling it again replaces what an earlier call set up, so
    no line appears twice. "fcos_core" and "atss_core" are names of the same package: setting up one sets up the other.

    Args:
        name (str): logger name, "fcos_core" for everything of this package.
        save_dir (str): folder of the log file, created if needed; empty: no file.
        distributed_rank (int): processes with a rank above 0 get a silent logger.
        filename (str): name of the log file, to which lines are appended.

    Returns:
        logging.Logger
    """
    handlers = _make_handlers(save_dir, filename) if distributed_rank <= 0 else [logging.NullHandler()]
    for other in _NAMES if name in _NAMES else (name,):
        _set_handlers(logging.getLogger(other), handlers)
    return logging.getLogger(name)


def _make_handlers(save_dir, filename):
    handlers = [logging.StreamHandler(stream=sys.stdout)]
    if save_dir:
        os.makedirs(save_dir, exist_ok=True)
        handlers.append(logging.FileHandler(os.path.join(save_dir, filename), encoding="utf-8"))
    for handler in handlers:
        handler.setLevel(logging.DEBUG)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    return handlers


def _set_handlers(logger, handlers):
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        if handler not in handlers:
            handler.close()
    for handler in handlers:
        logger.addHandler(handler)
