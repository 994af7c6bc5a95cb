"""Names that a configuration can choose a part by."""
from fcos_core.config.not_carried import TWO_STAGE, module_getattr
from fcos_core.utils.registry import Registry

# MODEL.BACKBONE.CONV_BODY -> function(cfg) -> module with an int `out_channels`; filled by modeling.backbone
BACKBONES = Registry()

_TWO_STAGE_REGISTRIES = (
    "RPN_HEADS ROI_BOX_FEATURE_EXTRACTORS ROI_BOX_PREDICTOR ROI_KEYPOINT_FEATURE_EXTRACTORS ROI_KEYPOINT_PREDICTOR "
    "ROI_MASK_FEATURE_EXTRACTORS ROI_MASK_PREDICTOR"
)
__getattr__ = module_getattr(__name__, dict.fromkeys(_TWO_STAGE_REGISTRIES.split(), TWO_STAGE))
