"""The configuration: `cfg` (the tree of defaults) and `load_config` (defaults + yaml file + options).

``from fcos_core.config import cfg; cfg.merge_from_file(...)`` works as it always did.
"""
import difflib
import os

import yaml

from fcos_core.config.defaults import _C as cfg
from fcos_core.config.heads import HEADS, settle_head
from fcos_core.config.not_carried import TWO_STAGE

__all__ = ["cfg", "load_config"]


def _leaves(node, prefix=""):
    """Dotted names of the leaves of a nested dict."""
    for key, value in node.items():
        name = prefix + key
        if isinstance(value, dict):
            for leaf in _leaves(value, name + "."):
                yield leaf
        else:
            yield name


def _check_names(names, where):
    known = set(_leaves(cfg))
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 3, 0.5)
            raise KeyError(
                "load_config: expected a known key, got {} in {}; {}".format(
                    name,
                    where,
                    "did you mean {}?".format(" or ".join(close)) if close else "see fcos_core/config/defaults.py",
                )
            )


def _refuse_two_stage(config_file, in_file, in_options):
    """Legacy: FCOS is on by default, so a file of a two-stage model, which names no dense head, would give an FCOS."""
    names = in_file | in_options
    second_stage = sorted(name for name in in_file if name.startswith(("MODEL.RPN.", "MODEL.ROI_")))
    if second_stage and not any("MODEL.{}_ON".format(head) in names for head in HEADS):
        raise ValueError(
            "load_config: expected a file of a dense head, got {} with {}; ".format(config_file, second_stage[0])
            + TWO_STAGE.format(config_file)
            + "; if the file means one of these, name it there, for example MODEL.FCOS_ON: True"
        )


def load_config(config_file="", opts=(), defaults=None):
    """Merge the defaults, a yaml file and a list of options; the switch of a dense head that was asked for turns off
    the one that is on by default.

    Args:
        config_file: path of a yaml file, or "" for none.
        opts: flat list KEY1, VALUE1, KEY2, VALUE2, ... as it comes from a command line.
        defaults: the tree to start from, `cfg` if None; left as it is.

    Returns:
        (cfg, explicit): a modifiable copy of the tree, and the set of dotted names that the file or the options set
        (so that a caller can tell "left at its default" from "asked for").

    Raises:
        FileNotFoundError: the file does not exist.
        KeyError: an unknown key; the message names similar ones.
        ValueError: a value of the wrong type, an option without a value, or several dense heads asked for,
            or a file of a two-stage model.
    """
    merged = (cfg if defaults is None else defaults).clone()
    merged.defrost()
    explicit = set()
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(
                "load_config: expected a yaml file, got {}, which does not exist; "
                "the files of this package are in configs/".format(config_file)
            )
        with open(config_file, encoding="utf-8") as f:
            explicit.update(_leaves(yaml.safe_load(f) or {}))
        _check_names(sorted(explicit), config_file)
        merged.merge_from_file(config_file)
    opts = list(opts)
    if len(opts) % 2:
        raise ValueError(
            "load_config: expected KEY VALUE pairs, got {} words: {}; give each key its value".format(
                len(opts), " ".join(map(str, opts))
            )
        )
    _check_names(opts[0::2], "the options")
    merged.merge_from_list(opts)
    _refuse_two_stage(config_file, explicit, set(opts[0::2]))
    settle_head(merged, set(opts[0::2]), explicit)
    return merged, explicit | set(opts[0::2])
