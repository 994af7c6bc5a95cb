"""The one place that chooses the dense head."""
import importlib

from fcos_core.config.heads import HEADS, chosen_head


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
