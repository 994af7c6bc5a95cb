"""Bodies from other libraries by name: MODEL.BACKBONE.CONV_BODY "timm/convnext_tiny" or "torchvision/resnet50".

One adapter for both: a library makes a network that returns several maps; a run on a small image tells their strides,
widths and layouts, and what to freeze.  Both libraries are imported when a name asks for them.
"""
import difflib
import importlib

import torch
from torch import nn

from fcos_core.utils.pixels import IMAGENET_MEAN, IMAGENET_STD, warn_of_misfit

# of the maps that the pyramid P3 to P7 is made of
STRIDES = (8, 16, 32)
# Image of the run: not square, so that rows, columns and channels can be told apart.
_PROBE = (128, 192)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


class LibraryBody(nn.Module):
    """A network of another library as a body: images in, maps of stride 8, 16 and 32 out.

    Args:
        network: maps images [N, 3, H, W] to three maps, a list or a dictionary.
        strides: stride of the output of each module of `network`, {name: pixels}, see `module_strides`.
        freeze_at: blocks whose output has at most 2^freeze_at pixels of stride get no gradients and stay in evaluation
            mode; not positive: none.
        freeze_bn: all BatchNorm modules stay constant.

    Attributes:
        out_channels_per_stage: widths of the maps, fine to coarse.

    Raises:
        ValueError: the maps have other strides.
    """

    def __init__(self, network, strides, freeze_at=0, freeze_bn=False):
        super(LibraryBody, self).__init__()
        self.network = network
        maps = _probe(network)
        self._rows_first = [_layout(m)[1] for m in maps]  # [N, H, W, C], as transformers have it
        found = [_layout(m)[0] or tuple(m.shape) for m in maps]
        if found != list(STRIDES):
            raise ValueError(
                "LibraryBody: expected maps of stride 8, 16 and 32 of an image of {} x {} pixels, got {}; take another "
                "body".format(_PROBE[0], _PROBE[1], found)
            )
        self.out_channels_per_stage = [m.shape[-1 if last else 1] for m, last in zip(maps, self._rows_first)]
        self._freeze(strides, freeze_at, freeze_bn)

    def forward(self, x):
        """Images [N, 3, H, W] -> list of maps [N, C_k, H_k, W_k] of stride 8, 16 and 32."""
        maps = _as_list(self.network(x))
        return [m.permute(0, 3, 1, 2) if last else m for m, last in zip(maps, self._rows_first)]

    def train(self, mode=True):
        """Switch the mode; what is frozen stays in evaluation mode."""
        super(LibraryBody, self).train(mode)
        for module in self._constant:
            module.training = False  # not eval(), which would take along what it contains
        return self

    def _freeze(self, strides, freeze_at, freeze_bn):
        if freeze_at > 5:
            raise ValueError(
                "LibraryBody: expected MODEL.BACKBONE.FREEZE_CONV_BODY_AT of at most 5 (stride 32, all of the body), "
                "got {}".format(freeze_at)
            )
        limit = 2**freeze_at if freeze_at > 0 else 0
        constant, stride = [], 1
        for name, module in self.network.named_modules():
            stride = _stride_of(name, strides) or stride  # without one of its own, that of the module before it
            if (name and stride <= limit) or (freeze_bn and isinstance(module, _BATCH_NORM)):
                constant.append(module)
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad = False
        self._constant = tuple(constant)


def build_library_body(cfg):
    """The body that MODEL.BACKBONE.CONV_BODY names as LIBRARY/NAME.

    Args:
        cfg: MODEL.BACKBONE.{CONV_BODY, PRETRAINED, FREEZE_CONV_BODY_AT, FREEZE_BN} are read, and INPUT for a warning if
            it does not fit pretrained weights.

    Returns:
        LibraryBody.

    Raises:
        ValueError: unknown library or name, or a network without maps of stride 8, 16 and 32.
        ImportError: the library is not installed, or too old.
        RuntimeError: the weights cannot be had.
    """
    options = cfg.MODEL.BACKBONE
    library, name = options.CONV_BODY.split("/", 1)
    if library not in _LIBRARIES:
        raise ValueError(
            "build_backbone: expected MODEL.BACKBONE.CONV_BODY to start with one of {}, got {!r}; correct it".format(
                ", ".join(key + "/" for key in sorted(_LIBRARIES)), options.CONV_BODY
            )
        )
    network, strides, mean, std = _LIBRARIES[library](name, options.PRETRAINED)
    if options.PRETRAINED:
        warn_of_misfit(cfg.INPUT, mean, std, options.CONV_BODY)
    return LibraryBody(network, strides, options.FREEZE_CONV_BODY_AT, options.FREEZE_BN)


# -------------------------------------------------------------------------------------------------- the libraries


def _from_timm(name, pretrained):
    """(network, strides of its modules, mean, std)."""
    timm = _import("timm", "timm", "pip install timm")
    if not timm.is_model(name):
        raise ValueError(_unknown("timm", name, timm.list_models()))

    def make(**options):
        return timm.create_model(name, pretrained=pretrained, features_only=True, **options)

    network, options = _make("timm/" + name, pretrained, make), {}
    reductions = list(network.feature_info.reduction())
    if not set(STRIDES) <= set(reductions):
        raise ValueError(_wrong_strides("timm/" + name, reductions))
    try:
        strides = module_strides(network, "timm/" + name)
    except ValueError:
        options = {"strict_img_size": False}  # windowed transformers insist on one size unless told otherwise
        try:
            network = make(**options)
        except TypeError:
            network = None
        if network is None:
            raise
        strides = module_strides(network, "timm/" + name)
    # the last map of each stride
    wanted = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]
    if wanted != list(range(len(reductions))):  # without the layers behind the last one, which would never be trained
        network = make(out_indices=tuple(wanted), **options)
    facts = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {}
    return network, strides, tuple(facts.get("mean", IMAGENET_MEAN)), tuple(facts.get("std", IMAGENET_STD))


def _from_torchvision(name, pretrained):
    """(network, strides of its modules, mean, std)."""
    models = _import("torchvision.models", "torchvision", "pip install torchvision")
    extraction = _import(
        "torchvision.models.feature_extraction", "torchvision 0.11 or newer", "install a newer torch and torchvision"
    )
    known = _torchvision_names(models)
    if name not in known:
        raise ValueError(_unknown("torchvision", name, known))
    if hasattr(models, "get_model"):
        weights = {"weights": "DEFAULT" if pretrained else None}
    else:
        weights = {"pretrained": pretrained}
    network = _make("torchvision/" + name, pretrained, lambda: getattr(models, name)(**weights))
    strides = module_strides(network, "torchvision/" + name)
    # The last output of each stride among the outer modules and their children: the ends of the stages.
    ends = {stride: module for module, stride in strides.items() if module.count(".") < 2}
    if not set(STRIDES) <= set(ends):
        raise ValueError(_wrong_strides("torchvision/" + name, sorted(ends)))
    nodes = {ends[stride]: str(stride) for stride in STRIDES}
    return extraction.create_feature_extractor(network, nodes), strides, IMAGENET_MEAN, IMAGENET_STD


_LIBRARIES = {"timm": _from_timm, "torchvision": _from_torchvision}


def _torchvision_names(models):
    """Names of classification networks."""
    if hasattr(models, "list_models"):
        return models.list_models(module=models)
    return sorted(key for key, value in vars(models).items() if key.islower() and callable(value))


def _import(module, what, remedy):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            "build_backbone: expected {} for this MODEL.BACKBONE.CONV_BODY, got {}; {}".format(what, error, remedy)
        ) from error


def _make(name, pretrained, function):
    try:
        return function()
    except Exception as error:
        if pretrained:
            raise RuntimeError(
                "build_backbone: expected the pretrained weights of {}, got {}: {}; where they cannot be downloaded, "
                "set MODEL.BACKBONE.PRETRAINED False and MODEL.WEIGHT to a file".format(
                    name, type(error).__name__, error
                )
            ) from error
        raise ValueError(
            "build_backbone: expected {} to be a network of several maps, got {}: {}; take another body".format(
                name, type(error).__name__, error
            )
        ) from error


def _unknown(library, name, known):
    near = difflib.get_close_matches(name, known, 5, 0.5)
    return "build_backbone: expected MODEL.BACKBONE.CONV_BODY to be a name of {}, got {!r}; {}".format(
        library,
        library + "/" + name,
        "did you mean {}?".format(", ".join(library + "/" + n for n in near)) if near else "its list_models() has them",
    )


def _wrong_strides(name, found):
    return "build_backbone: expected {} to have maps of stride 8, 16 and 32, got {}; take another body".format(
        name, ", ".join(map(str, found)) or "none"
    )


# ------------------------------------------------------------------------------------------- the run on a small image


def module_strides(network, name):
    """Stride of the output of each module, by a run on a small image.

    Args:
        network: maps images [N, 3, H, W] to anything.
        name: of the network, for messages.

    Returns:
        dict {name of a module: stride} in the order in which the modules finish; without those whose output is no map.

    Raises:
        ValueError: the network takes images of one size only.
    """
    strides, handles = {}, []

    def note(module_name):
        def hook(module, inputs, output):
            stride = _layout(output)[0] if isinstance(output, torch.Tensor) else None
            if stride and module_name not in strides:
                strides[module_name] = stride

        return hook

    for module_name, module in network.named_modules():
        if module_name:
            handles.append(module.register_forward_hook(note(module_name)))
    try:
        _probe(network)
    except Exception as error:
        raise ValueError(
            "build_backbone: expected {} to take images of any size, got {}: {}; take another body".format(
                name, type(error).__name__, error
            )
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return strides


def _probe(network):
    """Outputs for the small image, as a list; leaves the network in the mode it had."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            return _as_list(network(torch.zeros((1, 3) + _PROBE)))
    finally:
        network.train(training)


def _as_list(maps):
    return list(maps.values()) if isinstance(maps, dict) else list(maps)


def _layout(output):
    """(stride, whether the channels come last) of a map of the small image; (None, False) if it is no map."""
    if output.dim() == 4:
        for stride in (1, 2, 4, 8, 16, 32, 64):
            size = (_PROBE[0] // stride, _PROBE[1] // stride)
            if tuple(output.shape[2:]) == size:
                return stride, False
            if tuple(output.shape[1:3]) == size:
                return stride, True
    return None, False


def _stride_of(name, strides):
    """Stride of the block or stage that a module belongs to; None if that is not known.

    That is the module around it on the second level of names, "layer2.0" or "features.3", whose first layers still have
    the stride of the stage before; or else one on a deeper level, or the one on the first.
    """
    parts = name.split(".")
    for end in list(range(min(2, len(parts)), len(parts) + 1)) + [1]:
        around = ".".join(parts[:end])
        if around in strides:
            return strides[around]
    return None
