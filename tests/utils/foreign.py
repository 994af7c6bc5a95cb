"""Thin detectors of this package and of torchvision with the same shapes, and state dicts to convert."""
import torch

from fcos_core.config import load_config
from fcos_core.modeling.detector import build_detection_model
from tests.golden import recipe
from tests.thin import thin_config

# 10 classes; the names of the body and the pyramid are those of R-50 models, only the channels are few.
_SMALL = {
    "MODEL.FCOS.NUM_CONVS": 2,
    "MODEL.ATSS.NUM_CONVS": 2,
    "MODEL.FCOS.NUM_CLASSES": 11,
    "MODEL.ATSS.NUM_CLASSES": 11,
}
# Widths that cannot be chosen in a ResNet of torchvision.
TORCHVISION_WIDTHS = {"MODEL.RESNETS.STEM_OUT_CHANNELS": 64, "MODEL.RESNETS.RES2_OUT_CHANNELS": 256}
# What torchvision computes, as far as it is a matter of the model.
TORCHVISION = {
    "MODEL.FCOS.NORM_REG_TARGETS": True,
    "MODEL.FCOS.CENTERNESS_ON_REG": True,
    "MODEL.FCOS.LOCATION_OFFSET": 0.0,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "INPUT.TO_BGR255": False,
    "INPUT.PIXEL_MEAN": [0.485, 0.456, 0.406],
    "INPUT.PIXEL_STD": [0.229, 0.224, 0.225],
}
ATSS = {"MODEL.ATSS_ON": True, "MODEL.FCOS_ON": False}
DEFORMABLE = {"MODEL.RESNETS.STAGE_WITH_DCN": (False, False, True, True), "MODEL.RESNETS.WITH_MODULATED_DCN": True}


def words(settings):
    return [word for pair in settings.items() for word in pair]


def make_config(settings):
    return load_config("", words(settings))[0]


def config_of(settings=()):
    return thin_config(*words(dict(_SMALL, **dict(settings))))


def detector(settings=(), filled=True):
    """(cfg, model in evaluation mode), with the weights of the recipe."""
    cfg = config_of(settings)
    model = build_detection_model(cfg)
    return cfg, (recipe.fill(model) if filled else model).eval()


def same_scales(state):
    """A copy with scales of 1, for formats that have none."""
    return {name: torch.ones(1) if name.endswith(".scale") else tensor for name, tensor in state.items()}


def torchvision_detector(num_outputs=11):
    """The thin detector built of torchvision's own parts, with noise for weights."""
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.fcos import FCOS, FCOSHead
    from torchvision.models.resnet import Bottleneck, ResNet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    body = ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=4)
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    backbone = BackboneWithFPN(body, layers, [512, 1024, 2048], 64, LastLevelP6P7(64, 64))
    head = FCOSHead(64, 1, num_outputs, num_convs=2)
    model = FCOS(backbone, num_outputs, head=head, min_size=128, max_size=256)
    return perturb(model).eval()


def perturb(model):
    """Weights by the recipe, under the names of the model; scores and distances are spread."""
    recipe.fill(model)
    state = model.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if name.endswith("cls_logits.bias"):
                value -= 2
                value[0] = -100.0  # output 0 stands for no class and is never trained to fire
            if name.endswith("bbox_reg.bias"):
                value += 2
            if name.endswith(("cls_logits.weight", "bbox_reg.weight")):
                value *= 1.5
            if name.endswith("downsample.1.weight") or ".bn3.weight" in name:
                value *= 0.5
    return model
