"""detectron2: its FCOS, its ResNets, and AdelaiDet, which is built on it."""

from fcos_core.utils.weights_formats.base import (
    DETECTRON2_BGR,
    IMAGENET_RGB,
    WeightsFormat,
    drop_scales,
    ones_for_scales,
)
from fcos_core.utils.weights_formats.resnets import detectron2_names, has_bottlenecks, is_grouped

_PYRAMID = [
    ("backbone.fpn.fpn_inner{i}.{p}", "backbone.fpn_lateral{i+1}.{p}"),
    ("backbone.fpn.fpn_layer{i}.{p}", "backbone.fpn_output{i+1}.{p}"),
    ("backbone.fpn.top_blocks.p{i}.{p}", "backbone.top_block.p{i}.{p}"),
]
# Buffers that some versions save.
_BOOKKEEPING = r"^pixel_(mean|std)$|anchor_generator\.|^loss_normalizer$"


def _body_facts(ours, meta):
    """Stride and input of the pretrained ResNets that it starts from: MSRA's, ResNeXt or torchvision's."""
    mean, std = meta.get("pixel_mean"), meta.get("pixel_std")
    pixels = dict(DETECTRON2_BGR)
    if mean is not None and std is not None:
        pixels.update({"INPUT.PIXEL_MEAN": _numbers(mean), "INPUT.PIXEL_STD": _numbers(std)})
    stride = {"MODEL.RESNETS.STRIDE_IN_1X1": not is_grouped(ours)} if has_bottlenecks(ours) else {}
    return dict(stride, **pixels)


def _numbers(tensor):
    return [round(float(value), 4) for value in tensor.reshape(-1)]


class Detectron2Detector(WeightsFormat):
    """detectron2's FCOS: as torchvision's, but its locations are in the middle of the cells, as ours."""

    name = "detectron2"
    title = "the FCOS of detectron2"
    offset_suffix = "_offset"
    ignored = _BOOKKEEPING
    rules = (
        detectron2_names("backbone.bottom_up.")
        + _PYRAMID
        + [
            ("rpn.head.cls_tower.{n}.{p}", "head.cls_subnet.{n}.{p}"),
            ("rpn.head.bbox_tower.{n}.{p}", "head.bbox_subnet.{n}.{p}"),
            ("rpn.head.cls_logits.{p}", "head.cls_score.{p}"),
            ("rpn.head.bbox_pred.{p}", "head.bbox_pred.{p}"),
            ("rpn.head.centerness.{p}", "head.ctrness.{p}"),
        ]
    )
    certain = {
        "MODEL.FCOS_ON": True,
        "MODEL.FCOS.NORM_REG_TARGETS": True,
        "MODEL.FCOS.CENTERNESS_ON_REG": True,
        "MODEL.FCOS.LOCATION_OFFSET": 0.5,
        "MODEL.FPN.RELU_BEFORE_P7": True,
    }
    # As torchvision: sqrt(probability * centerness) above 0.2.
    testing = {
        "MODEL.FCOS.INFERENCE_TH": 0.04,
        "MODEL.FCOS.NMS_TH": 0.6,
        "MODEL.FCOS.PRE_NMS_TOP_N": 1000,
        "TEST.DETECTIONS_PER_IMG": 100,
        "DATALOADER.SIZE_DIVISIBILITY": 32,
    }

    def recognises(self, names):
        return "head.ctrness.weight" in set(names)

    def read(self, state, meta=None, is_frozen=None, num_classes=None):
        pixels = {key: state[key] for key in ("pixel_mean", "pixel_std") if key in state}
        return super(Detectron2Detector, self).read(state, dict(meta or {}, **pixels), is_frozen, num_classes)

    def complete(self, ours, num_classes):
        ones_for_scales(ours)

    def reduce(self, ours):
        drop_scales(ours, self.title)

    def facts(self, ours, meta, sources):
        return dict(self.certain), _body_facts(ours, meta), dict(self.testing)

    def refuse(self, state, config):
        notes = self._demand(config, self.certain)
        return notes + [
            "Its config has to say the same as ours: stride_in_1x1 of the stages, pixel_mean, pixel_std (it takes "
            'pixels of 0..255), head norm "GN", P6 from P5'
        ]


class AdelaiDetDetector(Detectron2Detector):
    """AdelaiDet's FCOS, by the authors of FCOS: the improved one, with scales."""

    name = "adelaidet"
    title = "the FCOS of AdelaiDet"
    rules = (
        detectron2_names("backbone.bottom_up.")
        + _PYRAMID
        + [
            ("rpn.head." + name, "proposal_generator.fcos_head." + name)
            for name in (
                "cls_tower.{n}.{p}",
                "cls_tower.{n}.conv.{p}",  # of the deformable one
                "cls_tower.{n}.offset.{p}",
                "bbox_tower.{n}.{p}",
                "bbox_tower.{n}.conv.{p}",
                "bbox_tower.{n}.offset.{p}",
                "cls_logits.{p}",
                "bbox_pred.{p}",
                "scales.{n}.scale",
            )
        ]
        + [("rpn.head.centerness.{p}", "proposal_generator.fcos_head.ctrness.{p}")]
    )
    testing = dict(Detectron2Detector.testing, **{"MODEL.FCOS.INFERENCE_TH": 0.05})

    def recognises(self, names):
        return any(name.startswith("proposal_generator.fcos_head.") for name in names)

    def reduce(self, ours):
        """Nothing to leave out: it has scales."""


class Detectron2Backbone(WeightsFormat):
    """A ResNet in detectron2's names, such as torchvision's ones that its users convert."""

    name = "detectron2-resnet"
    title = "the ResNets of detectron2"
    offset_suffix = "_offset"
    rules = detectron2_names("", ours="")
    ignored = r"^stem\.fc\.|^fc\.|^linear\."

    def recognises(self, names):
        return {"stem.conv1.weight", "res2.0.conv1.weight"} <= set(names)

    def facts(self, ours, meta, sources):
        # In these names come torchvision's weights; those of Caffe2 keep their own names.
        stride = {"MODEL.RESNETS.STRIDE_IN_1X1": False} if has_bottlenecks(ours) else {}
        return {}, dict(stride, **IMAGENET_RGB), {}

    def write(self, state, config=None):
        prefix = "backbone.body."
        body = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
        return super(Detectron2Backbone, self).write(body or state, config)
