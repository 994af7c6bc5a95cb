"""Weights of other frameworks: which one a file is from, and the way there and back.

One file for each framework, with the names as rules and the conventions as code. To add one, write a subclass of
`base.WeightsFormat` and put it into FORMATS.
"""

import collections

from fcos_core.utils.model_serialization import strip_prefix_if_present
from fcos_core.utils.weights_formats.detectron2 import AdelaiDetDetector, Detectron2Backbone, Detectron2Detector
from fcos_core.utils.weights_formats.mmdet import MMDetATSS, MMDetFCOS
from fcos_core.utils.weights_formats.own import Caffe2, Own
from fcos_core.utils.weights_formats.torchvision import TorchvisionBackbone, TorchvisionDetector

__all__ = ["FAMILIES", "FORMATS", "find_format", "interpret"]

# The first one that recognises a file counts.
FORMATS = collections.OrderedDict(
    (weights_format.name, weights_format)
    for weights_format in (
        AdelaiDetDetector(),
        Detectron2Detector(),
        TorchvisionDetector(),
        MMDetFCOS(),
        MMDetATSS(),
        Detectron2Backbone(),
        Own(),
        TorchvisionBackbone(),
        Caffe2(),
    )
)
_BODIES = ("torchvision-resnet", "detectron2-resnet")
# Names of the command line: the framework says which of its formats it is.
FAMILIES = collections.OrderedDict(
    [
        ("fcos_core", ("fcos_core",)),
        ("torchvision", ("torchvision", "torchvision-resnet")),
        ("detectron2", ("detectron2", "detectron2-resnet")),
        ("adelaidet", ("adelaidet",)),
        ("mmdet", ("mmdet", "mmdet-atss")),
        ("caffe2", ("caffe2",)),
    ]
)


def find_format(names, family=None):
    """The format of a file.

    Args:
        names (iterable[str]): of its tensors, without the prefix `module.`.
        family (str): key of FAMILIES; None: any.

    Returns:
        WeightsFormat: our own if no other one recognises the names.

    Raises:
        ValueError: unknown family, or the names are not of that family.
    """
    names = list(names)
    if family is not None and family not in FAMILIES:
        raise ValueError(f"find_format: expected a family among {', '.join(FAMILIES)}, got {family!r}")
    for name in FORMATS if family is None else FAMILIES[family]:
        if FORMATS[name].recognises(names):
            return FORMATS[name]
    if family in (None, "fcos_core"):
        return FORMATS["fcos_core"]
    raise ValueError(
        f"find_format: expected weights of {family}, got names such as {', '.join(names[:5])}; let the names decide "
        "(auto)"
    )


def interpret(checkpoint, family=None, model_state=None, is_frozen=None):
    """The tensors of a checkpoint in our names and conventions.

    Args:
        checkpoint (dict): with the key "model", see `checkpoint.read_checkpoint`.
        family (str): key of FAMILIES; None: found by the names.
        model_state (dict[str, Tensor]): state dict of the model that the weights are for, if there is one: it says
            which batch norms have constant statistics, and how many classes there are.
        is_frozen (callable): without a model, (our name of a batch norm) -> whether it has constant statistics.

    Returns:
        base.Weights

    Raises:
        ValueError: see `find_format`; or the format has something that ours cannot express.
    """
    state = strip_prefix_if_present(checkpoint["model"], "module.")
    weights_format = find_format(state, family)
    meta = {key: value for key, value in checkpoint.items() if key != "model"}
    if model_state is None:
        return weights_format.read(state, meta, is_frozen)
    if weights_format.name in _BODIES and not any(name.endswith("stem.conv1.weight") for name in model_state):
        weights_format = FORMATS["fcos_core"]  # the body is one of theirs, under their names
    counting = [name[: -len(".num_batches_tracked")] for name in model_state if name.endswith(".num_batches_tracked")]
    logits = [tensor for name, tensor in model_state.items() if name.endswith("rpn.head.cls_logits.bias")]
    return weights_format.read(
        state,
        meta,
        is_frozen=lambda norm: not any(name.endswith(norm) for name in counting),
        num_classes=len(logits[0]) if logits else None,
    )
