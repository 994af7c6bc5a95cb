"""Names that a configuration can choose a part by."""
from fcos_core.utils.registry import Registry

# MODEL.BACKBONE.CONV_BODY -> function(cfg) -> module with an int `out_channels`; filled by modeling.backbone
BACKBONES = Registry()
