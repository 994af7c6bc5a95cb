"""Where log lines go: the terminal and a file, from the main process only."""

import logging
import os
import sys


def setup_logger(name, save_dir, distributed_rank, filename="log.txt"):
    """Make the logger `name` write to standard output and to a file.

    Loggers below it (`name.trainer`, ...) write there too. Calling it again replaces what an earlier call set up, so
    no line appears twice.

    Args:
        name (str): logger name, "fcos_core" for everything of this package.
        save_dir (str): folder of the log file, created if needed; empty: no file.
        distributed_rank (int): processes with a rank above 0 get a silent logger.
        filename (str): name of the log file, to which lines are appended.

    Returns:
        logging.Logger
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    if distributed_rank > 0:
        logger.addHandler(logging.NullHandler())
        return logger

    handlers = [logging.StreamHandler(stream=sys.stdout)]
    if save_dir:
        os.makedirs(save_dir, exist_ok=True)
        handlers.append(logging.FileHandler(os.path.join(save_dir, filename), encoding="utf-8"))
    for handler in handlers:
        handler.setLevel(logging.DEBUG)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
        logger.addHandler(handler)
    return logger
