"""torchvision: its detector `fcos_resnet50_fpn`, and its ResNets, whose names timm shares."""

import torch

from fcos_core.utils.weights_formats.base import IMAGENET_RGB, WeightsFormat, drop_scales, ones_for_scales
from fcos_core.utils.weights_formats.resnets import has_bottlenecks, torch_names

# Its COCO models have one output for each category id from 0 to 90; these are the ones that exist.
COCO_OUTPUTS = 91
COCO_IDS = [i for i in range(1, COCO_OUTPUTS) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
# Logit of an output that never fires.
_NEVER = -100.0
_PREDICTION = "rpn.head.cls_logits."


class TorchvisionDetector(WeightsFormat):
    """`torchvision.models.detection.fcos_resnet50_fpn`.

    The distances are relu(regression) times the stride, from the location stride * index (not half a stride further);
    no scales; centerness on the regression tower. Output c of the classifier is label c, and output 0, which stands
    for nothing, is dropped.
    """

    name = "torchvision"
    title = "the FCOS of torchvision"
    counts_batches = True
    rules = torch_names("backbone.body.") + [
        ("backbone.fpn.fpn_inner{i+2}.{p}", "backbone.fpn.inner_blocks.{i}.0.{p}"),
        ("backbone.fpn.fpn_inner{i+2}.{p}", "backbone.fpn.inner_blocks.{i}.{p}"),  # before torchvision 0.14
        ("backbone.fpn.fpn_layer{i+2}.{p}", "backbone.fpn.layer_blocks.{i}.0.{p}"),
        ("backbone.fpn.fpn_layer{i+2}.{p}", "backbone.fpn.layer_blocks.{i}.{p}"),
        ("backbone.fpn.top_blocks.p{i}.{p}", "backbone.fpn.extra_blocks.p{i}.{p}"),
        ("rpn.head.cls_tower.{n}.{p}", "head.classification_head.conv.{n}.{p}"),
        ("rpn.head.bbox_tower.{n}.{p}", "head.regression_head.conv.{n}.{p}"),
        ("rpn.head.cls_logits.{p}", "head.classification_head.cls_logits.{p}"),
        ("rpn.head.bbox_pred.{p}", "head.regression_head.bbox_reg.{p}"),
        ("rpn.head.centerness.{p}", "head.regression_head.bbox_ctrness.{p}"),
    ]
    certain = {
        "MODEL.FCOS_ON": True,
        "MODEL.FCOS.NORM_REG_TARGETS": True,
        "MODEL.FCOS.CENTERNESS_ON_REG": True,
        "MODEL.FCOS.LOCATION_OFFSET": 0.0,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.FPN.RELU_BEFORE_P7": True,
    }
    # It compares sqrt(probability * centerness) with 0.2, hence no probability below 0.04 can pass.
    testing = {
        "MODEL.FCOS.INFERENCE_TH": 0.04,
        "MODEL.FCOS.NMS_TH": 0.6,
        "MODEL.FCOS.PRE_NMS_TOP_N": 1000,
        "TEST.DETECTIONS_PER_IMG": 100,
        "DATALOADER.SIZE_DIVISIBILITY": 32,
    }

    def recognises(self, names):
        return any(name.startswith("head.classification_head.") for name in names)

    def complete(self, ours, num_classes):
        ones_for_scales(ours)
        for parameter in ("weight", "bias"):
            outputs = ours.get(_PREDICTION + parameter)
            if outputs is not None:
                coco = len(outputs) == COCO_OUTPUTS and num_classes != COCO_OUTPUTS - 1
                ours[_PREDICTION + parameter] = outputs[COCO_IDS] if coco else outputs[1:]

    def reduce(self, ours):
        drop_scales(ours, self.title)
        for parameter, fill in (("weight", 0.0), ("bias", _NEVER)):
            outputs = ours[_PREDICTION + parameter]
            coco = len(outputs) == len(COCO_IDS)
            ids = COCO_IDS if coco else list(range(1, len(outputs) + 1))
            number = COCO_OUTPUTS if coco else len(outputs) + 1
            more = torch.full((number,) + tuple(outputs.shape[1:]), fill, dtype=outputs.dtype)
            more[ids] = outputs
            ours[_PREDICTION + parameter] = more

    def facts(self, ours, meta, sources):
        return dict(self.certain), dict(IMAGENET_RGB), dict(self.testing)

    def refuse(self, state, config):
        notes = self._demand(config, dict(self.certain, **IMAGENET_RGB))
        number = len(state[_PREDICTION + "bias"])
        if number == len(COCO_IDS):
            return notes + [f"80 classes are taken for those of COCO: {COCO_OUTPUTS} outputs, by category id"]
        return notes + [f"Build fcos_resnet50_fpn with num_classes={number + 1}"]


class TorchvisionBackbone(WeightsFormat):
    """A ResNet classifier of torchvision or timm: the body of a detector."""

    name = "torchvision-resnet"
    title = "the ResNets of torchvision and timm"
    counts_batches = True
    rules = torch_names("", ours="")
    ignored = r"^fc\."

    def recognises(self, names):
        names = set(names)
        return {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight"} <= names

    def facts(self, ours, meta, sources):
        stride = {"MODEL.RESNETS.STRIDE_IN_1X1": False} if has_bottlenecks(ours) else {}
        return {}, dict(stride, **IMAGENET_RGB), {}

    def write(self, state, config=None):
        prefix = "backbone.body."
        body = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
        theirs, notes = super(TorchvisionBackbone, self).write(body or state, config)
        return theirs, notes + ["There is no classifier (fc) in it: load it with strict=False"]

    def refuse(self, state, config):
        return self._demand(config, self.facts(state, {}, {})[1])
