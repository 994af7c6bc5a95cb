"""mmdetection: FCOS and ATSS, releases 2 and 3."""

import re

import torch

from fcos_core.utils.weights_formats.base import CAFFE_BGR, NUM_LEVELS, WeightsFormat, as_text, value_of
from fcos_core.utils.weights_formats.resnets import is_grouped, mmdet_names

# Means and deviations in its configs are those of pixels of 0..255, in either order of the channels.
_CAFFE2_MEAN = [103.53, 116.28, 123.675]
_RGB_MEAN, _RGB_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
_STRIDES = (8, 16, 32, 64, 128)
_ANCHOR_SCALE = 8  # octave_base_scale
_TOWERS = (("cls_tower", "cls_convs"), ("bbox_tower", "reg_convs"))


def _tower_rules():
    rules = []
    for ours, theirs in _TOWERS:
        ours, theirs = f"rpn.head.{ours}.", f"bbox_head.{theirs}."
        rules += [
            (ours + "{3*n}.{p}", theirs + "{n}.conv.{p}"),
            (ours + "{3*n+1}.{p}", theirs + "{n}.gn.{p}"),
            (ours + "{3*n}.conv.{p}", theirs + "{n}.conv.conv.{p}"),
            (ours + "{3*n}.offset.{p}", theirs + "{n}.conv.conv_offset.{p}"),
        ]
    return rules


_SHARED = (
    mmdet_names("backbone.")
    + [
        ("backbone.fpn.fpn_inner{i+2}.{p}", "neck.lateral_convs.{i}.conv.{p}"),
        ("backbone.fpn.top_blocks.p6.{p}", "neck.fpn_convs.3.conv.{p}"),
        ("backbone.fpn.top_blocks.p7.{p}", "neck.fpn_convs.4.conv.{p}"),
        ("backbone.fpn.fpn_layer{i+2}.{p}", "neck.fpn_convs.{i}.conv.{p}"),
        ("rpn.head.scales.{n}.scale", "bbox_head.scales.{n}.scale"),
    ]
    + _tower_rules()
)


class _MMDetDetector(WeightsFormat):
    """What both heads share. A scale is a number there and a tensor of one element here."""

    offset_suffix = ".conv_offset"
    counts_batches = True

    def complete(self, ours, num_classes):
        for name, tensor in ours.items():
            if name.endswith(".scale"):
                ours[name] = tensor.reshape(1)
        for tower, _ in _TOWERS:  # a convolution before a norm has no bias there, unless the config asks for one
            for name in [name for name in ours if name.startswith(f"rpn.head.{tower}.") and ours[name].dim() == 4]:
                if ".offset." not in name:
                    bias = name[: -len("weight")] + "bias"
                    ours.setdefault(bias, ours[name].new_zeros(len(ours[name])))

    def reduce(self, ours):
        for name, tensor in ours.items():
            if name.endswith(".scale"):
                ours[name] = tensor.reshape(())

    def _body_facts(self, config, style, rgb, mean):
        """Of the text of its config, or else what is usual: STRIDE_IN_1X1 and the input."""
        caffe = (_setting(config, "style") or style) == "caffe"
        to_rgb = _setting(config, "bgr_to_rgb") or _setting(config, "to_rgb")
        to_rgb = rgb if to_rgb is None else to_rgb == "True"
        mean = _numbers(config, "mean") or (_RGB_MEAN if to_rgb else mean)
        std = _numbers(config, "std") or (_RGB_STD if to_rgb else CAFFE_BGR["INPUT.PIXEL_STD"])
        scale = 255.0 if to_rgb else 1.0  # our RGB pixels are of 0..1
        return {"MODEL.RESNETS.STRIDE_IN_1X1": caffe}, {
            "INPUT.TO_BGR255": not to_rgb,
            "INPUT.PIXEL_MEAN": [round(value / scale, 6) for value in mean],
            "INPUT.PIXEL_STD": [round(value / scale, 6) for value in std],
        }


class MMDetFCOS(_MMDetDetector):
    """FCOSHead. Regression and locations are ours; detections are ranked by the product, of which we take the root."""

    name = "mmdet"
    title = "the FCOS of mmdetection"
    rules = _SHARED + [
        ("rpn.head.cls_logits.{p}", "bbox_head.conv_cls.{p}"),
        ("rpn.head.bbox_pred.{p}", "bbox_head.conv_reg.{p}"),
        ("rpn.head.centerness.{p}", "bbox_head.conv_centerness.{p}"),
    ]

    def recognises(self, names):
        return "bbox_head.conv_centerness.weight" in set(names)

    def facts(self, ours, meta, sources):
        config = config_text(meta)
        # The improved models, and only they, have biases before the norms.
        improved = "rpn.head.cls_tower.0.bias" in sources
        style = "pytorch" if is_grouped(ours) else "caffe"
        mean = _CAFFE2_MEAN if improved else CAFFE_BGR["INPUT.PIXEL_MEAN"]
        stride, pixels = self._body_facts(config, style, style == "pytorch", mean)
        meaning = {
            "MODEL.FCOS.NORM_REG_TARGETS": _flag(config, "norm_on_bbox", improved),
            "MODEL.FCOS.CENTERNESS_ON_REG": _flag(config, "centerness_on_reg", improved),
            "MODEL.FPN.RELU_BEFORE_P7": _flag(config, "relu_before_extra_convs", True),
        }
        meaning.update(stride)
        certain = {"MODEL.FCOS_ON": True, "MODEL.FCOS.LOCATION_OFFSET": 0.5}
        testing = {
            "MODEL.FCOS.INFERENCE_TH": 0.05,
            "MODEL.FCOS.NMS_TH": float(_setting(config, "iou_threshold") or (0.6 if improved else 0.5)),
            "MODEL.FCOS.PRE_NMS_TOP_N": 1000,
            "TEST.DETECTIONS_PER_IMG": 100,
            "DATALOADER.SIZE_DIVISIBILITY": 32,
        }
        if config:
            return dict(certain, **meaning), pixels, testing
        return certain, dict(meaning, **pixels), testing

    def refuse(self, state, config):
        notes = self._demand(config, {"MODEL.FCOS_ON": True, "MODEL.FCOS.LOCATION_OFFSET": 0.5})
        says = {"conv_bias": True}
        if config is not None:
            says.update(
                norm_on_bbox=value_of(config, "MODEL.FCOS.NORM_REG_TARGETS"),
                centerness_on_reg=value_of(config, "MODEL.FCOS.CENTERNESS_ON_REG"),
                dcn_on_last_conv=value_of(config, "MODEL.FCOS.USE_DCN_IN_TOWER"),
            )
        return notes + ["Its FCOSHead needs " + ", ".join(f"{k}={v}" for k, v in says.items())] + _neck(config)


class MMDetATSS(_MMDetDetector):
    """ATSSHead with its one square anchor at each location.

    The anchors are centred at stride * index and as wide as eight strides; widths there are x2 - x1. So the anchors
    of the model are replaced by ones of the same centre and the same width, counted our way. A box comes out with
    corners half a pixel further in: the same number of pixels, x2 - x1 + 1 of them.
    """

    name = "mmdet-atss"
    title = "the ATSS of mmdetection"
    rules = _SHARED + [
        ("rpn.head.cls_logits.{p}", "bbox_head.atss_cls.{p}"),
        ("rpn.head.bbox_pred.{p}", "bbox_head.atss_reg.{p}"),
        ("rpn.head.centerness.{p}", "bbox_head.atss_centerness.{p}"),
    ]

    def recognises(self, names):
        return "bbox_head.atss_centerness.weight" in set(names)

    def complete(self, ours, num_classes):
        super(MMDetATSS, self).complete(ours, num_classes)
        anchors = len(ours.get("rpn.head.centerness.bias", ()))
        if anchors > 1:
            raise ValueError(
                f"MMDetATSS.read: expected one anchor at each location, as in its published models, got {anchors}; "
                "these weights cannot be converted"
            )
        for level, stride in enumerate(_STRIDES):
            reach = (_ANCHOR_SCALE * stride - 1) / 2.0
            ours[f"rpn.anchor_generator.cell_anchors.{level}"] = torch.tensor([[-reach, -reach, reach, reach]])

    def facts(self, ours, meta, sources):
        config = config_text(meta)
        stride, pixels = self._body_facts(config, "pytorch", True, _CAFFE2_MEAN)
        meaning = dict(stride, **{"MODEL.FPN.RELU_BEFORE_P7": _flag(config, "relu_before_extra_convs", False)})
        certain = {"MODEL.ATSS_ON": True, "MODEL.ATSS.REGRESSION_TYPE": "BOX"}
        testing = {
            "MODEL.ATSS.INFERENCE_TH": 0.05,
            "MODEL.ATSS.NMS_TH": 0.6,
            "MODEL.ATSS.PRE_NMS_TOP_N": 1000,
            "TEST.DETECTIONS_PER_IMG": 100,
            "DATALOADER.SIZE_DIVISIBILITY": 32,
        }
        if config:
            return dict(certain, **meaning), pixels, testing
        return certain, dict(meaning, **pixels), testing

    def write(self, state, config=None):
        self._refuse_own_anchors(state)
        return super(MMDetATSS, self).write(state, config)

    def reduce(self, ours):
        super(MMDetATSS, self).reduce(ours)
        for name in [name for name in ours if re.match(r"rpn\.head\.(cls|bbox)_tower\.\d+\.(conv\.)?bias$", name)]:
            tower, number = name.split(".")[2:4]
            if f"rpn.head.{tower}.{number}.weight" in ours and ours[f"rpn.head.{tower}.{number}.weight"].dim() == 1:
                continue  # that of a norm
            bias = ours.pop(name)
            if bool((bias != 0).any()):
                raise ValueError(
                    f"MMDetATSS.write: expected towers without biases before the norms, since {self.title} has none, "
                    f"got {name}; this model cannot be converted"
                )

    def refuse(self, state, config):
        wanted = {"MODEL.ATSS_ON": True, "MODEL.ATSS.REGRESSION_TYPE": "BOX"}
        return self._demand(config, wanted) + _neck(config)

    def _refuse_own_anchors(self, state):
        """Theirs lie at stride * index; a model that was trained with others finds other boxes with them."""
        for level, stride in enumerate(_STRIDES):
            anchors = state.get(f"rpn.anchor_generator.cell_anchors.{level}")
            if anchors is None:
                continue
            reach = (_ANCHOR_SCALE * stride - 1) / 2.0
            if not torch.equal(anchors.cpu().float(), torch.tensor([[-reach, -reach, reach, reach]])):
                raise ValueError(
                    f"MMDetATSS.write: expected the anchors of {self.title}, {[-reach, -reach, reach, reach]} on level "
                    f"{level}, got {anchors.tolist()}; only a model that came from there can go back"
                )


def config_text(meta):
    """The text of the config that release 2 ("config") or 3 ("cfg") puts into the meta data; "" if there is none."""
    meta = meta.get("meta") or {}
    text = meta.get("config") or meta.get("cfg") or ""
    return text if isinstance(text, str) else ""


def _setting(config, name):
    """Last value of `name=value` in the text of a config, or None."""
    found = re.findall(r"\b%s\s*=\s*'?([\w.]+)'?" % name, config)
    return found[-1] if found else None


def _flag(config, name, usual):
    value = _setting(config, name)
    if value is None:
        return False if config else usual  # all of these are False unless a config says otherwise
    return value == "True"


def _numbers(config, name):
    found = re.findall(r"\b%s\s*=\s*[\[(]([^\])]*)[\])]" % name, config)
    return [float(number) for number in found[0].split(",") if number.strip()] if found else None


def _neck(config):
    if config is None:
        return []
    relu, c5 = value_of(config, "MODEL.FPN.RELU_BEFORE_P7"), value_of(config, "MODEL.RETINANET.USE_C5")
    style = "caffe" if value_of(config, "MODEL.RESNETS.STRIDE_IN_1X1") else "pytorch"
    keys = ("INPUT.TO_BGR255", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD")
    return [
        f"Its backbone needs style='{style}', its neck start_level=1, num_outs={NUM_LEVELS}, "
        f"add_extra_convs='{'on_input' if c5 else 'on_output'}', relu_before_extra_convs={relu}",
        "Its input has to be as ours: " + as_text({key: value_of(config, key) for key in keys}),
    ]
