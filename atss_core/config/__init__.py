"""The configuration with the defaults of `atss_core`: no dense head is on, and all anchors are shifted.

``from atss_core.config import cfg; cfg.merge_from_file(...)`` works as it always did; `load_config` as in
`fcos_core.config`, from these defaults.
"""

from atss_core.config.defaults import _C as cfg
from fcos_core import config as _config

__all__ = ["cfg", "load_config"]


def load_config(config_file="", opts=(), defaults=None):
    """`fcos_core.config.load_config` from the defaults of this package."""
    return _config.load_config(config_file, opts, cfg if defaults is None else defaults)
