"""Our own weights, those of the packages that this one succeeds, and ResNets of Caffe2 under our names."""

import yaml

from fcos_core.utils.weights_formats.base import CAFFE_BGR, Weights, WeightsFormat, value_of
from fcos_core.utils.weights_formats.resnets import has_bottlenecks, is_grouped

# Settings under which the same tensors give other boxes, by the head that reads them.
_MEANING = {
    "FCOS": ("MODEL.FCOS.NORM_REG_TARGETS", "MODEL.FCOS.CENTERNESS_ON_REG", "MODEL.FCOS.LOCATION_OFFSET"),
    "ATSS": ("MODEL.ATSS.REGRESSION_TYPE",),
}
_ANY_HEAD = (
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.FPN.RELU_BEFORE_P7",
    "INPUT.TO_BGR255",
    "INPUT.PIXEL_MEAN",
    "INPUT.PIXEL_STD",
)


class Own(WeightsFormat):
    """fcos_core and atss_core: nothing to translate. Names need not be whole: a suffix of ours is enough."""

    name = "fcos_core"
    title = "fcos_core"

    def recognises(self, names):
        starts = ("backbone.body.", "backbone.fpn.", "rpn.", "stem.conv1.", "body.stem.")
        return any(name.startswith(starts) for name in names)

    def read(self, state, meta=None, is_frozen=None, num_classes=None):
        assumed = _trained_with((meta or {}).get("config"))
        return Weights(self.name, state, {name: name for name in state}, [], [], {}, assumed, {})

    def write(self, state, config=None):
        return state, []


class Caffe2(Own):
    """ResNets trained with Caffe2, whose blobs `c2_model_loading` has renamed. They cannot be written."""

    name = "caffe2"
    title = "Caffe2"
    writable = False

    def recognises(self, names):
        names = set(names)
        return {"conv1.weight", "layer1.0.conv1.weight"} <= names and not any("running_mean" in name for name in names)

    def read(self, state, meta=None, is_frozen=None, num_classes=None):
        weights = super(Caffe2, self).read(state)
        # MSRA's ResNets put the stride into the first convolution, those with groups or GroupNorm do not.
        modern = is_grouped(state) or bool((meta or {}).get("group_norm"))
        stride = {"MODEL.RESNETS.STRIDE_IN_1X1": not modern} if has_bottlenecks(state) else {}
        return weights._replace(format=self.name, assumed=dict(stride, **CAFFE_BGR))

    def write(self, state, config=None):
        raise ValueError("Caffe2.write: expected a format of detectors, got caffe2, which has none of ours")


def _trained_with(text):
    """Those settings of the config that a checkpoint carries, as yaml text, which its weights depend on."""
    try:
        config = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError:  # the "config" of somebody else
        return {}
    keys = list(_ANY_HEAD)
    for head, more in _MEANING.items():
        if value_of(config, f"MODEL.{head}_ON"):
            keys += more
    settings = {key: value_of(config, key) for key in keys}
    return {key: value for key, value in settings.items() if value is not None}
