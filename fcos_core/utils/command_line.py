"""What the command-line tools share: arguments of a run, and errors in a sentence instead of a traceback.

Importable without torch, so that --help answers where torch is missing or broken.
"""

import argparse
import logging
import os
import re
import sys

# Code that is called by code: what goes wrong with arguments there is for the programmer, who wants the traceback.
_FOR_PROGRAMMERS = ("fcos_core.layers.", "fcos_core.structures.")


def make_parser(description):
    """A parser whose help shows a module's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_run_arguments(parser, config_help="yaml file of a config"):
    """Add what every run from a config takes: --config-file, the local rank of old launchers, and KEY VALUE pairs.

    Args:
        parser (argparse.ArgumentParser)
        config_help (str): explains --config-file.
    """
    parser.add_argument("--config-file", default="", metavar="FILE", help=config_help)
    # torch.distributed.launch passes one of the two spellings, by its version; torchrun sets LOCAL_RANK instead
    parser.add_argument("--local_rank", "--local-rank", type=int, default=None, help="set by torch.distributed.launch")
    add_options(parser)


def add_options(parser):
    """Add KEY VALUE pairs that override the config."""
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override the config")


def set_local_rank(args):
    """Hand the local rank of an old launcher on as torchrun does, by the environment."""
    if args.local_rank is not None:
        os.environ["LOCAL_RANK"] = str(args.local_rank)


def exit_code_of(work):
    """Run a tool; an error that the user can mend becomes one sentence in the log.

    Args:
        work (callable): without arguments; returns an exit code, or None for 0.

    Returns:
        int: the exit code; 1 after such an error. Other errors are raised, and with FCOS_CORE_TRACEBACK=1 all.
    """
    try:
        return work() or 0
    except Exception as error:
        sentence = sentence_for_user(error)
        if sentence is None or os.environ.get("FCOS_CORE_TRACEBACK") == "1":
            raise
    if int(os.environ.get("RANK", 0)) > 0:  # the log of this process is silent, and only this one may have failed
        print("rank {}: {}".format(os.environ["RANK"], sentence), file=sys.stderr)
        return 1
    logger = logging.getLogger("fcos_core")
    if not logger.handlers:  # the command line is looked at before there is a log
        from fcos_core.utils.logger import setup_logger

        setup_logger("fcos_core", "", 0)
    logger.error(sentence)
    return 1


def sentence_for_user(error):
    """The message of an error that is about what the user gave: command line, config, data, weights, machine.

    These are the errors with a class of this package, and those whose message has its pattern, "function: expected
    ..., got ...; do this", unless `layers` or `structures` raise them; also files and packages that are not there.

    Args:
        error (Exception): with its traceback.

    Returns:
        str or None: None if it is for programmers.
    """
    text = _text(error)
    worker = re.match(r"Caught (\w+) in DataLoader worker process", text)
    if worker:  # the message holds the original traceback, with the original message at its end
        found = re.search(r"^(?:[\w.]+\.)?{}: (\w[\w.]*: expected .*)".format(worker.group(1)), text, re.M | re.S)
        return found.group(1).strip() if found else None
    if type(error).__module__.startswith("fcos_core."):
        return text
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("fcos_core"):
        return "{}; python -m fcos_core.doctor says what to install".format(text)
    if isinstance(error, OSError) and error.filename is not None:  # a file of the user that cannot be read or written
        return text
    raised_by = _module_that_raised(error)
    if raised_by.startswith(("yacs.", "yaml.")):  # a value of the wrong type, or a broken file
        return "load_config: {}".format(text)
    if not raised_by.startswith("fcos_core.") or raised_by.startswith(_FOR_PROGRAMMERS):
        return None
    return text if re.match(r"[A-Za-z_][\w.]*: expected ", text) else None


def _text(error):
    # str() of a KeyError is the repr of its argument
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _module_that_raised(error):
    traceback, module = error.__traceback__, ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return module
