"""The one place that chooses the dense head."""
import importlib

from fcos_core.config.heads import HEADS, chosen_head
from fcos_core.config.not_carried import TWO_STAGE, module_getattr


def build_rpn(cfg, in_channels):
    """The dense head that `cfg` asks for.

    Args:
        cfg: the switches MODEL.<head>_ON choose, see config/heads.py.
        in_channels: channels of the pyramid.

    Raises:
        ValueError: no head that this package carries is on, or several.
    """
    module, function = HEADS[chosen_head(cfg)].split(":")
    return getattr(importlib.import_module(module), function)(cfg, in_channels)


_TWO_STAGE_NAMES = ("RPNHead", "RPNHeadConvRegressor", "RPNHeadFeatureSingleConv", "RPNModule")
__getattr__ = module_getattr(__name__, dict.fromkeys(_TWO_STAGE_NAMES, TWO_STAGE))
