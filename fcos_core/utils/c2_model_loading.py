"""Reading Caffe2 (Detectron) weights of ResNets by renaming their blobs.

The names follow a pattern, so rules translate them; there is no table. A Caffe2 ResNet block `res3_1_branch2b` is the
second convolution of the second block of our second stage: `layer2.1.conv2`.
"""

import collections
import re

import torch

from fcos_core.utils.registry import Registry
from fcos_core.utils.safe_pickle import load_pickle

# Number of blocks in the four stages, by the depth in the name of the body.
_BLOCKS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}
# Legacy: the old name of the table, with the last block of each stage, which the blobs of the FPN carry.
_C2_STAGE_NAMES = {
    "R-" + depth: [f"{stage}.{count - 1}" for stage, count in enumerate(blocks, 1)] for depth, blocks in _BLOCKS.items()
}

C2_FORMAT_LOADER = Registry()

_BRANCHES = {
    "branch1": ("downsample.0", "downsample.1"),
    "branch2a": ("conv1", "bn1"),
    "branch2b": ("conv2", "bn2"),
    "branch2c": ("conv3", "bn3"),
}
_SUFFIXES = {"w": "weight", "b": "bias", "s": "weight"}
# Blobs with a name of their own; `{}` is weight or bias. The shared head of the RPN is saved once, under the name of
# its finest level, fpn2.
_PLAIN_NAMES = {
    "conv1": "conv1",
    "pred": "fc1000",
    "conv_rpn": "rpn.head.conv",
    "conv_rpn_fpn2": "rpn.head.conv",
    "rpn_bbox_pred": "rpn.head.bbox_pred",
    "rpn_bbox_pred_fpn2": "rpn.head.bbox_pred",
    "rpn_cls_logits": "rpn.head.cls_logits",
    "rpn_cls_logits_fpn2": "rpn.head.cls_logits",
    "_[mask]_fcn1": "mask_fcn1",
}


def rename_blob(name):
    """Our name for a Caffe2 blob of a ResNet detector.

    Args:
        name (str): for example "res2_0_branch2a_bn_s".

    Returns:
        str: for example "layer1.0.bn1.weight". A blob without a rule keeps its name up to the ending.
    """
    base, _, ending = name.rpartition("_")
    if ending not in _SUFFIXES:
        return name
    kind = _SUFFIXES[ending]

    norm = re.match(r"^(.*)_(?:bn|gn)$", base)
    stem = norm.group(1) if norm else base
    if norm and stem in ("conv1", "res_conv1"):
        return f"bn1.{kind}"
    block = re.match(r"^res(\d)_(\d+)_(branch1|branch2[abc])$", stem)
    if block:
        stage, index, branch = int(block.group(1)) - 1, block.group(2), block.group(3)
        return f"layer{stage}.{index}.{_BRANCHES[branch][1 if norm else 0]}.{kind}"
    lateral = re.match(r"^fpn_(inner_)?res(\d)_\d+_sum(?:_lateral)?$", stem)
    if lateral:
        return f"fpn_{'inner' if lateral.group(1) else 'layer'}{int(lateral.group(2)) - 1}.{kind}"
    return f"{_PLAIN_NAMES.get(stem, stem)}.{kind}"


def _rename_weights_for_resnet(weights, stage_names=None):
    """State dict of tensors, in sorted order of the blobs, without momentum and bookkeeping."""
    state_dict = collections.OrderedDict()
    for name in sorted(weights):
        if name.endswith("_momentum") or "weight_order" in name:
            continue
        state_dict[rename_blob(name)] = torch.from_numpy(weights[name])
    return state_dict


def _rename_conv_weights_for_deformable_conv_layers(state_dict, cfg):
    """In stages with deformable convolution the 3x3 sits one level deeper: `conv2.weight` -> `conv2.conv.weight`."""
    stages = [number for number, is_dcn in enumerate(cfg.MODEL.RESNETS.STAGE_WITH_DCN, 1) if is_dcn]
    pattern = re.compile(r"^(.*layer[{}]\.\d+\.conv2)\.(weight|bias)$".format("".join(map(str, stages)) or "^0-9"))
    return collections.OrderedDict((pattern.sub(r"\1.conv.\2", name), value) for name, value in state_dict.items())


def _load_c2_pickled_weights(file_path):
    """The blobs of a Caffe2 pickle: at top level or under the key `blobs`."""
    data = load_pickle(file_path)
    return data["blobs"] if "blobs" in data else data


def load_resnet_c2_format(cfg, f):
    """Weights of a ResNet body.

    Args:
        cfg (CfgNode): MODEL.RESNETS.STAGE_WITH_DCN is read.
        f (str): path of the .pkl file.

    Returns:
        dict: {"model": state dict}
    """
    state_dict = _rename_weights_for_resnet(_load_c2_pickled_weights(f))
    return {"model": _rename_conv_weights_for_deformable_conv_layers(state_dict, cfg)}


for _body in (
    "R-50-C4 R-50-C5 R-101-C4 R-101-C5 R-50-FPN R-50-FPN-RETINANET R-101-FPN R-101-FPN-RETINANET R-152-FPN".split()
):
    C2_FORMAT_LOADER.register(_body, load_resnet_c2_format)


def load_c2_format(cfg, f):
    """Weights in Caffe2 format for the backbone MODEL.BACKBONE.CONV_BODY.

    Raises:
        KeyError: no rules for that backbone; the message lists the known ones.
    """
    return C2_FORMAT_LOADER[cfg.MODEL.BACKBONE.CONV_BODY](cfg, f)
