"""What a format of weights is: names, numbers that mean something else there, and the config that belongs to them."""

import collections
import re

import torch

from fcos_core.utils.weights_formats.norms import fold_epsilon, unfold_epsilon
from fcos_core.utils.weights_formats.templates import Renaming

# Weights in our names.
Weights = collections.namedtuple(
    "Weights",
    [
        "format",  # name of the format they came in
        "state",  # OrderedDict: our name -> tensor
        "sources",  # dict: our name -> name in the file; tensors that the format implies are not in it
        "ignored",  # names of the file that mean nothing to a detector here, such as the classifier of ImageNet
        "unknown",  # names of the file that no rule translates
        "certain",  # dict: config key -> value without which these tensors compute something else
        "assumed",  # the same, but the file does not say it: how models of this format usually are
        "testing",  # config of the usual test: thresholds and the like
    ],
)

IMAGENET_RGB = {
    "INPUT.TO_BGR255": False,
    "INPUT.PIXEL_MEAN": [0.485, 0.456, 0.406],
    "INPUT.PIXEL_STD": [0.229, 0.224, 0.225],
}
CAFFE_BGR = {
    "INPUT.TO_BGR255": True,
    "INPUT.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
    "INPUT.PIXEL_STD": [1.0, 1.0, 1.0],
}
DETECTRON2_BGR = dict(CAFFE_BGR, **{"INPUT.PIXEL_MEAN": [103.53, 116.28, 123.675]})
NUM_LEVELS = 5


class WeightsFormat(object):
    """A format; subclasses fill in the attributes and the hooks.

    Attributes:
        name (str): of the command line.
        title (str): for messages.
        writable (bool): whether `write` works.
        rules: see templates.py.
        ignored (str): regular expression of names that are left out when reading.
        offset_suffix (str): a convolution X is deformable if there is a tensor X + offset_suffix + ".weight"; its own
            weight is X.weight there and X.conv.weight here. None: deformable convolutions are named as ours.
        counts_batches (bool): its batch norms have the entry `num_batches_tracked`.
    """

    name = ""
    title = ""
    writable = True
    rules = ()
    ignored = r"(?!)"
    offset_suffix = None
    counts_batches = False

    def __init__(self):
        self._renaming = Renaming(self.rules)

    def recognises(self, names):
        """Whether a file with these names is in this format."""
        raise NotImplementedError(f"{type(self).__name__}.recognises: a subclass says how its files look")

    def read(self, state, meta=None, is_frozen=None, num_classes=None):
        """Translate a state dict into our names and conventions.

        Args:
            state (dict[str, Tensor]): in this format.
            meta (dict): what else the file holds.
            is_frozen (callable): (our name of a batch norm) -> whether it has constant statistics in the model that
                the weights are for; default: all have. Those have no epsilon here.
            num_classes (int): foreground classes of the model that the weights are for, if known.

        Returns:
            Weights
        """
        is_frozen = is_frozen or (lambda norm: True)
        ours, sources, ignored, unknown = collections.OrderedDict(), {}, [], []
        deformable = self._deformable(state)
        for theirs, tensor in state.items():
            name = self._renaming.to_ours(_insert_conv(theirs, deformable))
            if re.search(self.ignored, theirs):
                ignored.append(theirs)
            elif name is None:
                unknown.append(theirs)
            else:
                ours[name], sources[name] = tensor, theirs
        for name in [name for name in ours if name.endswith(".running_var")]:
            norm = name[: -len(".running_var")]
            if is_frozen(norm):
                ours[name] = fold_epsilon(ours[name])
                if ours.pop(norm + ".num_batches_tracked", None) is not None:
                    ignored.append(sources.pop(norm + ".num_batches_tracked"))
        self.complete(ours, num_classes)
        certain, assumed, testing = self.facts(ours, meta or {}, sources)
        return Weights(self.name, ours, sources, ignored, unknown, certain, assumed, testing)

    def write(self, state, config=None):
        """Translate a state dict of ours.

        Args:
            state (dict[str, Tensor]): our names.
            config (CfgNode): of the model, or None if it is not known.

        Returns:
            (OrderedDict[str, Tensor], list[str]): the state dict in this format, and notes: what the other side has
            to be told.

        Raises:
            ValueError: this format cannot express the model.
        """
        state = collections.OrderedDict((k, v) for k, v in state.items() if "cell_anchors" not in k)
        notes = self.refuse(state, config)
        prepared = unfold_epsilon(state, self.counts_batches)
        self.reduce(prepared)
        theirs = collections.OrderedDict()
        for name, tensor in prepared.items():
            translated = self._renaming.to_theirs(name)
            if translated is None:
                raise ValueError(
                    f"{type(self).__name__}.write: expected tensors that {self.title} has too, got {name}; this model "
                    "cannot be converted"
                )
            theirs[translated] = tensor
        deformable = self._deformable(theirs)
        return collections.OrderedDict((_remove_conv(k, deformable), v) for k, v in theirs.items()), notes

    # ------------------------------------------------------------------------------------------------------ hooks
    def complete(self, ours, num_classes):
        """Add, in place, what our model has and this format implies; reorder classes."""

    def reduce(self, ours):
        """The inverse of `complete`, on a copy of our state dict, in place."""

    def facts(self, ours, meta, sources):
        """(certain, assumed, testing), see `Weights`."""
        return {}, {}, {}

    def refuse(self, state, config):
        """Raise ValueError if the format cannot express the model; returns notes."""
        return []

    # ---------------------------------------------------------------------------------------------------- helpers
    def _deformable(self, state):
        """Their names of the deformable convolutions."""
        if self.offset_suffix is None:
            return set()
        ending = self.offset_suffix + ".weight"
        return {name[: -len(ending)] for name in state if name.endswith(ending)}

    def _demand(self, config, wanted):
        """Compare the config with what the format takes for granted; notes if there is no config."""
        if config is None:
            return [f"The config of the model is not known; {self.title} takes for granted: {as_text(wanted)}"]
        wrong = {key: value for key, value in wanted.items() if not same_value(value_of(config, key), value)}
        if wrong:
            found = {key: value_of(config, key) for key in wrong}
            raise ValueError(
                f"{type(self).__name__}.write: expected a model with {as_text(wrong)}, since {self.title} computes "
                f"that way, got {as_text(found)}; this model cannot be converted"
            )
        return []


def _insert_conv(name, deformable):
    """`X.weight` of a deformable convolution X -> `X.conv.weight`."""
    stem, _, parameter = name.rpartition(".")
    return f"{stem}.conv.{parameter}" if stem in deformable else name


def _remove_conv(name, deformable):
    stem, _, parameter = name.rpartition(".")
    conv = stem[: -len(".conv")] if stem.endswith(".conv") else None
    return f"{conv}.{parameter}" if conv in deformable else name


def value_of(config, key):
    """Value of a dotted key of a CfgNode or nested dict; None if it has no such key."""
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return None
        config = config[part]
    return config


def same_value(value, wanted):
    """Equal; numbers up to 1.5 %, since a mean of 102.98 or of 103.53 makes no difference to the detections."""
    if isinstance(wanted, (list, tuple)):
        same_length = isinstance(value, (list, tuple)) and len(value) == len(wanted)
        return same_length and all(same_value(a, b) for a, b in zip(value, wanted))
    if isinstance(wanted, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return abs(value - wanted) <= 0.015 * max(abs(value), abs(wanted))
    return value == wanted


def as_text(settings):
    """KEY VALUE KEY VALUE, as a command line takes them."""
    return " ".join(
        f'{key} "{value}"' if isinstance(value, (list, tuple)) else f"{key} {value}" for key, value in settings.items()
    )


def ones_for_scales(ours, num_levels=NUM_LEVELS):
    """Add scales of 1 to a head whose format has none."""
    for level in range(num_levels):
        ours.setdefault(f"rpn.head.scales.{level}.scale", torch.ones(1))


def drop_scales(ours, title):
    """Remove the scales, in place, which must be all the same; a common factor goes into the regression layer.

    Raises:
        ValueError: the levels have different scales.
    """
    names = [name for name in ours if name.startswith("rpn.head.scales.")]
    scales = torch.cat([ours.pop(name).reshape(-1) for name in names]) if names else torch.ones(1)
    if not bool((scales == scales[0]).all()):
        raise ValueError(
            f"drop_scales: expected the same scale on all levels, since {title} has none, got {scales.tolist()}; this "
            "model cannot be converted"
        )
    if float(scales[0]) != 1.0:
        for parameter in ("weight", "bias"):
            ours[f"rpn.head.bbox_pred.{parameter}"] = ours[f"rpn.head.bbox_pred.{parameter}"] * scales[0]
