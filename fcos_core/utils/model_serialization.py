"""Fitting the tensors of a file to the names of a model."""

import collections
import logging

import torch

# Outcome of a match. matched: {model name: file name}; missing: model names that got nothing;
# unused: names of the file that went nowhere; mismatched: {model name: text with both shapes}.
MatchReport = collections.namedtuple("MatchReport", ["matched", "missing", "unused", "mismatched"])

_NAMES_SHOWN = 10


def match_by_suffix(model_names, loaded_names):
    """For each model name find the longest loaded name that it ends with.

    So `backbone.body.layer1.0.conv1.weight` takes `layer1.0.conv1.weight` rather than `conv1.weight`.

    Legacy: a plain string suffix counts, without a dot before it, and one loaded name may serve several model names.

    Returns:
        dict[str, str]: model name -> loaded name; names without a partner are left out.
    """
    loaded_names = set(loaded_names)
    matched = {}
    for name in model_names:
        for start in range(len(name)):  # from the longest suffix to the shortest
            if name[start:] in loaded_names:
                matched[name] = name[start:]
                break
    return matched


def align_and_update_state_dicts(model_state_dict, loaded_state_dict):
    """Replace the tensors of `model_state_dict`, in place, by those of `loaded_state_dict` whose names are suffixes.

    Shapes are not compared here.

    Returns:
        MatchReport: what matched and what did not.
    """
    matched = match_by_suffix(model_state_dict, loaded_state_dict)
    for name, loaded_name in matched.items():
        model_state_dict[name] = loaded_state_dict[loaded_name]
    used = set(matched.values())
    return MatchReport(
        matched,
        [name for name in model_state_dict if name not in matched],
        [name for name in loaded_state_dict if name not in used],
        {},
    )


def strip_prefix_if_present(state_dict, prefix):
    """Remove the prefix that `DistributedDataParallel` adds, if all names carry it; otherwise return the same dict.

    Legacy: every occurrence of the prefix in a name goes, not only the first; old files were matched that way.
    """
    if not state_dict or not all(name.startswith(prefix) for name in state_dict):
        return state_dict
    return collections.OrderedDict((name.replace(prefix, ""), value) for name, value in state_dict.items())


def load_state_dict(model, loaded_state_dict, skip_mismatched=False, logger=None):
    """Load tensors into a model by name suffix and log how many found a place.

    Args:
        model (nn.Module): is changed in place. What the file does not have keeps its value.
        loaded_state_dict (dict[str, Tensor]): tensors of a file, with or without the prefix `module.`.
        skip_mismatched (bool): leave tensors of another shape at their value, with a warning, instead of raising.
        logger (logging.Logger): default: the one of this module.

    Returns:
        MatchReport

    Raises:
        ValueError: no tensor fits any name, or a shape differs and `skip_mismatched` is off.
    """
    logger = logger or logging.getLogger(__name__)
    own_state = model.state_dict()
    target = collections.OrderedDict(own_state)
    report = align_and_update_state_dicts(target, strip_prefix_if_present(loaded_state_dict, "module."))
    if own_state and not report.matched:
        raise ValueError(
            "load_state_dict: expected loaded_state_dict to hold tensors of this model, got none whose name fits, for "
            f"example {_some(report.unused)}; check that the file belongs to this kind of model"
        )
    mismatched = {
        name: f"{name} ({_shape(own_state[name])} in the model, {_shape(target[name])} in the file)"
        for name in report.matched
        if _shape(own_state[name]) != _shape(target[name])
    }
    if mismatched and not skip_mismatched:
        raise ValueError(
            f"load_state_dict: expected the shapes of the model, got {len(mismatched)} others: "
            f"{_some(list(mismatched.values()))}; use the config that the file was trained with"
        )
    for name in mismatched:
        target[name] = own_state[name]
    model.load_state_dict(target)
    matched = {name: source for name, source in report.matched.items() if name not in mismatched}
    report = report._replace(matched=matched, mismatched=mismatched)
    _log(report, len(own_state), logger)
    return report


def _log(report, total, logger):
    logger.info(f"loaded {len(report.matched)} of the model's {total} tensors")
    if report.mismatched:
        logger.warning(f"skipped {len(report.mismatched)} of another shape: {_some(list(report.mismatched.values()))}")
    if report.missing:
        logger.info(f"not in the file, left as they were ({len(report.missing)}): {_some(report.missing)}")
    if report.unused:
        logger.info(f"in the file but not in the model ({len(report.unused)}): {_some(report.unused)}")


def _shape(tensor):
    return list(tensor.shape) if torch.is_tensor(tensor) else None


def _some(names):
    """The names, at most a handful, so that a log line stays a line."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown + (f", ... and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")
