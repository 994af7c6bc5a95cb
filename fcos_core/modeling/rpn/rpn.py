"""The one place that chooses the dense head."""
from fcos_core.config.heads import chosen_head
from fcos_core.config.not_carried import TWO_STAGE, module_getattr
from fcos_core.modeling.rpn.atss.atss import build_atss
from fcos_core.modeling.rpn.fcos.fcos import build_fcos
from fcos_core.modeling.rpn.retinanet.retinanet import build_retinanet

_BUILDERS = {"ATSS": build_atss, "FCOS": build_fcos, "RETINANET": build_retinanet}


def build_rpn(cfg, in_channels):
    """The dense head that `cfg` asks for.

    Args:
        cfg: MODEL.ATSS_ON, MODEL.RETINANET_ON and MODEL.FCOS_ON choose, see config/heads.py.
        in_channels: channels of the pyramid.

    Raises:
        ValueError: no head that this package carries is on, or several.
    """
    return _BUILDERS[chosen_head(cfg)](cfg, in_channels)


_TWO_STAGE_NAMES = ("RPNHead", "RPNHeadConvRegressor", "RPNHeadFeatureSingleConv", "RPNModule")
__getattr__ = module_getattr(__name__, dict.fromkeys(_TWO_STAGE_NAMES, TWO_STAGE))
