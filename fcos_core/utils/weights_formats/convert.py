"""Converting a file of weights from any format to any other, by way of ours."""

import collections
import os

import torch
import yaml

from fcos_core.utils.miscellaneous import write_atomically
from fcos_core.utils.weights_formats import FAMILIES, FORMATS, interpret
from fcos_core.utils.weights_formats.description import describe

# What came of a conversion: base.Weights; the config that belongs to them, {key: value}; {key: value} of it that is
# an assumption; what the other side has to be told (list of texts); the dictionary to be saved.
Conversion = collections.namedtuple("Conversion", ["weights", "settings", "assumed", "notes", "content"])


def convert(checkpoint, source=None, target="fcos_core", make_config=None, config=None, train_batch_norm=False):
    """Convert a checkpoint.

    Args:
        checkpoint (dict): with the key "model", see `checkpoint.read_weights`.
        source, target (str): keys of FAMILIES; None: found by the names.
        make_config (callable): ({key: value}) -> CfgNode with all other keys at their defaults.
        config (CfgNode): of the model, for weights of ours; default: the one that the checkpoint carries.
        train_batch_norm (bool): the batch norms of the body are to be trained (BottleneckWithBatchNorm) and keep their
            epsilon.

    Returns:
        Conversion

    Raises:
        ValueError: the source has tensors that no rule translates, or the target cannot express the model.
    """
    weights = interpret(checkpoint, source, is_frozen=(lambda norm: False) if train_batch_norm else None)
    if weights.unknown:
        raise ValueError(
            f"convert: expected tensors of a {weights.format} model, got {len(weights.unknown)} others: "
            f"{', '.join(weights.unknown[:10])}; this package has no such layers"
        )
    is_detector = any(name.startswith("rpn.") for name in weights.state)
    settings = collections.OrderedDict()
    if is_detector and weights.format != "fcos_core":
        settings.update(describe(weights.state))
    for more in (weights.assumed, weights.certain, weights.testing):
        settings.update(more)
    categories = list(checkpoint.get("categories") or _class_names(checkpoint))
    if weights.format != "fcos_core":
        config = make_config(settings) if is_detector else None
    elif config is None and checkpoint.get("config"):
        config = make_config({})
        config.merge_from_other_cfg(type(config).load_cfg(checkpoint["config"]))
    if target == "fcos_core":
        content = {"model": weights.state}
        if config is not None:
            content["config"] = config.dump()
        if categories:
            content["categories"] = categories
        return Conversion(weights, settings, dict(weights.assumed), [], content)
    written, notes = _writer(target, weights.state, is_detector).write(weights.state, config)
    return Conversion(weights, settings, dict(weights.assumed), notes, _wrap(target, written, categories))


def _writer(target, state, is_detector):
    """The format of a family that suits the weights."""
    if target not in FAMILIES:
        raise ValueError(f"convert: expected a target among {', '.join(FAMILIES)}, got {target!r}")
    names = FAMILIES[target]
    if target in ("torchvision", "detectron2"):
        return FORMATS[names[0 if is_detector else 1]]
    if target == "mmdet":
        return FORMATS[names[1 if any("cell_anchors" in name for name in state) else 0]]
    return FORMATS[names[0]]


def _wrap(target, state, categories):
    """As files of the target look."""
    if target == "mmdet":
        return {"state_dict": state, "meta": {"dataset_meta": {"classes": categories}} if categories else {}}
    return state if target == "torchvision" else {"model": state}


def _class_names(checkpoint):
    """Class names in the meta data of mmdetection 2 (CLASSES) and 3 (dataset_meta)."""
    meta = checkpoint.get("meta")
    if not isinstance(meta, dict):
        return ()
    names = meta.get("CLASSES") or (meta.get("dataset_meta") or {}).get("classes") or ()
    return names if isinstance(names, (list, tuple)) else ()


def save_conversion(conversion, path):
    """Write the weights, and for weights of ours that came from elsewhere the config beside them.

    Returns:
        list[str]: paths of the files.
    """
    write_atomically(path, lambda stream: torch.save(conversion.content, stream))
    if not conversion.settings or "model" not in conversion.content:
        return [path]
    yaml_path = os.path.splitext(path)[0] + ".yaml"
    text = yaml.safe_dump(_nested(conversion.settings), default_flow_style=None, sort_keys=False)
    write_atomically(yaml_path, lambda stream: stream.write(text.encode("utf-8")))
    return [path, yaml_path]


def _nested(settings):
    """{"A.B": 1} -> {"A": {"B": 1}}, in plain types."""
    tree = {}
    for key, value in settings.items():
        node = tree
        parts = key.split(".")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = list(value) if isinstance(value, tuple) else value
    return tree
