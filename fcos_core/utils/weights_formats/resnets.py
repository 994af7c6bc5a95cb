"""Names of ResNets in other frameworks. Theirs carry a prefix, and so do ours unless `ours` says otherwise."""

BODY = "backbone.body."


def torch_names(theirs, ours=BODY):
    """Rules for the names of torchvision.

    Args:
        theirs (str): prefix of their names.
        ours (str): prefix of ours.
    """
    block_ours, block_theirs = ours + "layer{i}.{j}.", theirs + "layer{i}.{j}."
    return [
        (ours + "stem.conv1.{p}", theirs + "conv1.{p}"),
        (ours + "stem.bn1.{p}", theirs + "bn1.{p}"),
        (block_ours + "conv{k}.{p}", block_theirs + "conv{k}.{p}"),
        (block_ours + "bn{k}.{p}", block_theirs + "bn{k}.{p}"),
        (block_ours + "downsample.{k}.{p}", block_theirs + "downsample.{k}.{p}"),
    ]


def mmdet_names(theirs, ours=BODY):
    """Rules for the names of mmdetection: those of torchvision, and deformable convolutions."""
    block_ours, block_theirs = ours + "layer{i}.{j}.conv{k}.", theirs + "layer{i}.{j}.conv{k}."
    return torch_names(theirs, ours) + [
        (block_ours + "conv.{p}", block_theirs + "conv.{p}"),
        (block_ours + "offset.{p}", block_theirs + "conv_offset.{p}"),
    ]


def detectron2_names(theirs, ours=BODY):
    """Rules for the names of detectron2; its stages count from 2 and a norm belongs to its convolution."""
    block_ours, block_theirs = ours + "layer{i}.{j}.", theirs + "res{i+1}.{j}."
    return [
        (ours + "stem.conv1.{p}", theirs + "stem.conv1.{p}"),
        (ours + "stem.bn1.{p}", theirs + "stem.conv1.norm.{p}"),
        (block_ours + "conv{k}.{p}", block_theirs + "conv{k}.{p}"),
        (block_ours + "conv{k}.conv.{p}", block_theirs + "conv{k}.conv.{p}"),
        (block_ours + "conv{k}.offset.{p}", block_theirs + "conv{k}_offset.{p}"),
        (block_ours + "bn{k}.{p}", block_theirs + "conv{k}.norm.{p}"),
        (block_ours + "downsample.0.{p}", block_theirs + "shortcut.{p}"),
        (block_ours + "downsample.1.{p}", block_theirs + "shortcut.norm.{p}"),
    ]


def has_bottlenecks(ours):
    """Whether a state dict of ours has blocks of three convolutions, those to which STRIDE_IN_1X1 applies."""
    return any(name.endswith("layer1.0.conv3.weight") for name in ours)


def is_grouped(ours):
    """Whether the 3x3 convolutions have groups: a ResNeXt."""
    for name, tensor in ours.items():
        if name.endswith(("layer1.0.conv2.weight", "layer1.0.conv2.conv.weight")):
            return tensor.shape[0] != tensor.shape[1]
    return False
