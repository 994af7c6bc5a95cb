"""Taking weights into a detector, and refusing those that do not belong to it.

A file may bring a whole detector, or the first of its parts: the body (weights of a classifier), the body and the
pyramid, and so on; the parts behind are new and keep their initial values. Anything else that does not fit, by name or
by shape, means that the config is not the one of the weights, and stops the program unless it is allowed.
"""

import collections
import logging
import re

import torch

from fcos_core.utils.model_serialization import align_and_update_state_dicts
from fcos_core.utils.weights_formats.base import as_text, same_value, value_of

# Parts of a detector, in the order in which files bring them.
_PARTS = (
    ("the body", re.compile(r"(^|\.)backbone\.body\.")),
    ("the pyramid", re.compile(r"(^|\.)backbone\.fpn\.(?!top_blocks\.)")),
    ("P6 and P7", re.compile(r"(^|\.)backbone\.fpn\.top_blocks\.")),
    ("the head", re.compile(r"(^|\.)rpn\.")),
)
# What a model computes or counts itself, and what training a deformable layer starts from.
_OWN = re.compile(r"cell_anchors|num_batches_tracked$")
_OFFSETS = re.compile(r"\.offset\.(weight|bias)$")
_STATISTICS = re.compile(r"\.running_(mean|var)$")
# What classifiers have behind their last stage (MobileNetV2 ends with features.18), and biases that Caffe2 writes
# for convolutions without one.
_CLASSIFIER = re.compile(r"(^|\.)(fc|fc1000|pred|classifier|last_linear|features\.18)\.")
_CONV_BIAS = re.compile(r"(conv\d(\.conv)?|downsample\.0)\.bias$")
# Layers with an output for each class.
_CLASSES = re.compile(r"rpn\.head\.cls_logits\.(weight|bias)$")
_NAMES_SHOWN = 12

Misfit = collections.namedtuple("Misfit", ["missing", "unused", "shapes"])  # lists of names or texts


def fit_weights(model, weights, skip_mismatched=False, whole=False, allow=False, source="the file", logger=None):
    """Load weights into a model if they belong to it, and log what matched and what did not, by name.

    Args:
        model (nn.Module): a detector; changed in place, or not at all if an error is raised.
        weights (weights_formats.base.Weights)
        skip_mismatched (bool): leave the layers that have an output for each class at their initial values, if the
            file has another number of classes.
        whole (bool): the weights must fill the whole model: a detector whose head is new finds nothing.
        allow (bool): load what fits, whatever else does not.
        source (str): of the weights, for messages.
        logger (logging.Logger): default: the one of this module.

    Returns:
        model_serialization.MatchReport; `missing` and `unused` hold all names.

    Raises:
        ValueError: the weights do not belong to the model; the message names the tensors and the remedy.
    """
    logger = logger or logging.getLogger(__name__)
    own_state = model.state_dict()
    target = collections.OrderedDict(own_state)
    report = align_and_update_state_dicts(target, weights.state)
    if own_state and not report.matched:
        raise ValueError(
            f"fit_weights: expected weights of this model, got none in {source} whose name fits, for example "
            f"{', '.join(list(weights.state)[:5] + weights.unknown[:5])}; check that it belongs to this kind of model"
        )
    mismatched = collections.OrderedDict(
        (name, f"{name} ({_shape(own_state[name])} in the model, {_shape(target[name])} in the file)")
        for name in report.matched
        if _shape(own_state[name]) != _shape(target[name])
    )
    other_classes = {
        name for name in mismatched if _CLASSES.search(name) and own_state[name].shape[1:] == target[name].shape[1:]
    }
    for name in mismatched:
        target[name] = own_state[name]
    implied = [name for name in report.matched.values() if name not in weights.sources]
    report = report._replace(
        matched={
            ours: weights.sources.get(name, name) for ours, name in report.matched.items() if ours not in mismatched
        },
        unused=[weights.sources.get(name, name) for name in report.unused] + weights.unknown,
        mismatched=mismatched,
    )
    misfit = find_misfit(own_state, report, weights, other_classes if skip_mismatched else (), whole)
    _log(report, weights, len(own_state), len(implied), source, logger)
    if any(misfit):
        if not allow:
            raise ValueError(_explain(misfit, source))
        logger.warning(_explain(misfit, source, "Ignored, because MODEL.ALLOW_WEIGHT_MISMATCH is on"))
    model.load_state_dict(target)
    return report


def find_misfit(own_state, report, weights, skipped, whole):
    """What of a report is not as it should be.

    Args:
        own_state (dict[str, Tensor]): of the model.
        report (MatchReport)
        weights (weights_formats.base.Weights)
        skipped (set[str]): tensors that may have another shape.
        whole (bool): see `fit_weights`.

    Returns:
        Misfit: names of the model without a partner, names of the file without a place, texts about shapes.
    """
    statistics_in_file = any(_STATISTICS.search(name) for name in weights.state)

    def may_be_missing(name):
        return (
            _OWN.search(name)
            or (_OFFSETS.search(name) and not whole)
            or (_STATISTICS.search(name) and not statistics_in_file)
        )

    found = set(report.matched) | set(report.mismatched)
    missing = [name for name in report.missing if not may_be_missing(name)]
    if not whole:
        new = set(_new_parts(found))
        missing = [name for name in missing if _part_of(name) not in new]
    shapes = [text for name, text in report.mismatched.items() if name not in skipped]
    stages = {_stage_of(name) for name in own_state}
    unused = [name for name in report.unused if not _may_be_unused(name, stages, weights)]
    return Misfit(missing, unused, shapes)


def _new_parts(found):
    """Parts at the end of the chain of which the file has nothing."""
    new = []
    for title, _ in reversed(_PARTS):
        if any(_part_of(name) == title for name in found):
            break
        new.append(title)
    return new if len(new) < len(_PARTS) else []


def _part_of(name):
    for title, pattern in _PARTS:
        if pattern.search(name):
            return title
    return None


def _may_be_unused(name, stages, weights):
    """Classifiers, biases before norms, bookkeeping, and stages that a shallower body lacks."""
    if _CLASSIFIER.search(name) or _OWN.search(name):
        return True
    if _CONV_BIAS.search(name) and weights.format == "caffe2":
        return True
    stage = _stage_of(name)
    return stage is not None and stage not in stages


def _stage_of(name):
    match = re.search(r"(^|\.)(layer\d+)\.\d+\.", name)
    return match.group(2) if match else None


def check_config(cfg, weights, allow=False, source="the file", logger=None):
    """Compare the config with what the weights were trained for.

    With a wrong setting a detector finds wrong boxes, so that is an error; a body can be trained to live with it.

    Args:
        cfg (CfgNode)
        weights (weights_formats.base.Weights)
        allow, source, logger: see `fit_weights`.

    Raises:
        ValueError: the weights are those of a detector, and something that follows from them is set otherwise.
    """
    logger = logger or logging.getLogger(__name__)
    certain, assumed = _differing(cfg, weights.certain), _differing(cfg, weights.assumed)
    if certain:
        text = (
            f"check_config: expected the config of the weights in {source} ({weights.format}), got "
            f"{as_text({key: value_of(cfg, key) for key in certain})}; set {as_text(certain)}"
        )
        if not allow and any(_part_of(name) == "the head" for name in weights.state):
            raise ValueError(text + ", or MODEL.ALLOW_WEIGHT_MISMATCH True to go on")
        logger.warning(text)
    if assumed:
        logger.warning(
            f"The weights in {source} ({weights.format}) were probably trained with {as_text(assumed)}, but the config "
            f"says {as_text({key: value_of(cfg, key) for key in assumed})}"
        )


def _differing(cfg, wanted):
    """Those settings that the config has otherwise."""
    return {key: value for key, value in wanted.items() if not same_value(value_of(cfg, key), value)}


# ------------------------------------------------------------------------------------------------------------ messages
def _log(report, weights, total, implied, source, logger):
    follow = f", {implied} of which follow from the format" if implied else ""
    logger.info(f"loaded {len(report.matched)} of the model's {total} tensors from {source} ({weights.format}){follow}")
    if report.mismatched:
        logger.warning(f"skipped {len(report.mismatched)} of another shape: {', '.join(report.mismatched.values())}")
    if report.missing:
        names = summarize(report.missing, list(report.matched) + list(report.mismatched))
        logger.info(f"not in the file, left as they were ({len(report.missing)}): {names}")
    unused = report.unused + weights.ignored
    if unused:
        logger.info(f"in the file but not in the model ({len(unused)}): {summarize(unused)}")


def summarize(names, others=()):
    """Names on one line, without leaving any out: `rpn.head.* (35)` for a whole module, `layer#.#.bn#.bias (48)` for
    names that differ in numbers.

    Args:
        names (list[str])
        others (iterable[str]): names that must not be covered by a `*`.
    """
    whole, left = _whole_modules(names, set(others)) if others else ({}, names)
    groups = collections.OrderedDict()
    for name in left:
        groups.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    texts = [f"{module}.* ({count})" for module, count in whole.items()]
    for pattern, members in groups.items():
        texts.append(members[0] if len(members) == 1 else f"{pattern} ({len(members)})")
    return ", ".join(texts)


def _whole_modules(names, others):
    """The highest modules of which all tensors are among the names, with their number, and the names that are left."""
    taken = {name.rsplit(".", i)[0] for name in others for i in range(1, name.count(".") + 1)}
    whole, left = collections.OrderedDict(), []
    for name in names:
        prefixes = [name.rsplit(".", i)[0] for i in range(name.count("."), 0, -1)]
        free = [prefix for prefix in prefixes if prefix not in taken]
        if free:
            whole[free[0]] = whole.get(free[0], 0) + 1
        else:
            left.append(name)
    return whole, left


def _explain(misfit, source, remedy=None):
    parts = []
    if misfit.missing:
        parts.append(f"{len(misfit.missing)} tensors of the model that are not in it: {_some(misfit.missing)}")
    if misfit.unused:
        parts.append(f"{len(misfit.unused)} tensors in it that the model does not have: {_some(misfit.unused)}")
    if misfit.shapes:
        parts.append(f"{len(misfit.shapes)} of another shape: {_some(misfit.shapes)}")
    remedy = remedy or (
        "use the config that the file was trained with, or set MODEL.ALLOW_WEIGHT_MISMATCH True to load what fits"
    )
    return f"fit_weights: expected {source} to fit the model, got {'; '.join(parts)}; {remedy}"


def _some(names):
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown + (f", ... and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")


def _shape(tensor):
    return list(tensor.shape) if torch.is_tensor(tensor) else None
