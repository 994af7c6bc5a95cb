"""What the shapes of a detector's weights say about its config."""

import re

_DEPTHS = {  # blocks of the second and third stage, with bottlenecks or without
    (4, 6, True): 50,
    (4, 23, True): 101,
    (8, 36, True): 152,
    (2, 2, False): 18,
    (4, 6, False): 34,
}


def describe(state):
    """Config keys that the weights of a detector imply.

    Args:
        state (dict[str, Tensor]): all tensors of the model, in our names.

    Returns:
        dict: config key -> value: backbone, widths, deformable parts, head, classes.

    Raises:
        ValueError: not a detector with a ResNet and a pyramid P3 to P7.
    """
    needed = ["backbone.body.stem.conv1.weight", "backbone.fpn.top_blocks.p6.weight", "rpn.head.cls_logits.weight"]
    absent = [name for name in needed if name not in state]
    if absent:
        raise ValueError(
            f"describe: expected the weights of a detector with a ResNet and a pyramid P3 to P7, got none called "
            f"{', '.join(absent)}"
        )
    settings = _body(state)
    settings.update(_pyramid(state))
    settings.update(_head(state))
    return settings


def _body(state):
    bottlenecks = "backbone.body.layer1.0.conv3.weight" in state
    depth = _DEPTHS.get((_blocks(state, 2), _blocks(state, 3), bottlenecks))
    if depth is None:
        raise ValueError(
            f"describe: expected a ResNet of 18, 34, 50, 101 or 152 layers, got {_blocks(state, 2)} and "
            f"{_blocks(state, 3)} blocks in the second and third stage"
        )
    deformable = tuple(f"backbone.body.layer{i}.0.conv2.offset.weight" in state for i in (1, 2, 3, 4))
    offsets = [state[f"backbone.body.layer{i}.0.conv2.offset.weight"] for i in (1, 2, 3, 4) if deformable[i - 1]]
    conv2 = state["backbone.body.layer1.0.conv2." + ("conv.weight" if deformable[0] else "weight")]
    last = state["backbone.body.layer1.0.conv3.weight"] if bottlenecks else conv2
    groups = conv2.shape[0] // conv2.shape[1] if bottlenecks else 1
    settings = {
        "MODEL.BACKBONE.CONV_BODY": f"R-{depth}-FPN-RETINANET",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": state["backbone.body.stem.conv1.weight"].shape[0],
        "MODEL.RESNETS.RES2_OUT_CHANNELS": last.shape[0],
        "MODEL.RESNETS.NUM_GROUPS": groups,
        "MODEL.RESNETS.STAGE_WITH_DCN": deformable,
        # 18 channels of offsets for nine taps, and 9 of modulation
        "MODEL.RESNETS.WITH_MODULATED_DCN": bool(offsets) and offsets[0].shape[0] % 27 == 0,
    }
    if bottlenecks:
        settings["MODEL.RESNETS.WIDTH_PER_GROUP"] = conv2.shape[0] // groups
    norm = _norm(state, "backbone.body.stem.bn1")
    settings["MODEL.RESNETS.STEM_FUNC"] = "StemWith" + norm
    settings["MODEL.RESNETS.TRANS_FUNC"] = "BottleneckWith" + norm
    return settings


def _blocks(state, stage):
    found = [re.match(rf"backbone\.body\.layer{stage}\.(\d+)\.", name) for name in state]
    return max([int(match.group(1)) + 1 for match in found if match] or [0])


def _norm(state, norm):
    if norm + ".num_batches_tracked" in state:
        return "BatchNorm"
    return "FixedBatchNorm" if norm + ".running_var" in state else "GN"


def _pyramid(state):
    p6 = state["backbone.fpn.top_blocks.p6.weight"]
    nested = "backbone.fpn.fpn_inner2.0.weight" in state  # convolution, norm, ReLU
    return {
        "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": p6.shape[0],
        "MODEL.RETINANET.USE_C5": p6.shape[0] != p6.shape[1],
        "MODEL.FPN.USE_GN": nested and "backbone.fpn.fpn_inner2.1.weight" in state,
    }


def _head(state):
    logits = state["rpn.head.cls_logits.weight"].shape[0]
    convolutions = [name for name in state if re.match(r"rpn\.head\.cls_tower\.\d+\.(conv\.)?weight$", name)]
    number = len([name for name in convolutions if state[name].dim() == 4])
    if "rpn.head.centerness.weight" not in state:
        anchors = state["rpn.head.bbox_pred.weight"].shape[0] // 4
        return {
            "MODEL.RETINANET_ON": True,
            "MODEL.RETINANET.NUM_CLASSES": logits // anchors + 1,
            "MODEL.RETINANET.NUM_CONVS": number,
        }
    head = "ATSS" if any("cell_anchors" in name for name in state) else "FCOS"
    anchors = state["rpn.head.centerness.weight"].shape[0]
    return {
        f"MODEL.{head}_ON": True,
        f"MODEL.{head}.NUM_CLASSES": logits // anchors + 1,
        f"MODEL.{head}.NUM_CONVS": number,
        f"MODEL.{head}.USE_DCN_IN_TOWER": any(".offset." in name for name in state if "cls_tower" in name),
    }
