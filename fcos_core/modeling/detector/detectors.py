"""From a configuration to a detector."""
from fcos_core.config.not_carried import refuse_not_carried
from fcos_core.modeling.detector.generalized_rcnn import GeneralizedRCNN

_DETECTION_META_ARCHITECTURES = {"GeneralizedRCNN": GeneralizedRCNN}


def build_detection_model(cfg):
    """The detector that `cfg` describes, with freshly initialised weights, in training mode, on the CPU.

    Raises:
        ValueError: an unknown MODEL.META_ARCHITECTURE, or a model that this package does not carry.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in _DETECTION_META_ARCHITECTURES:
        raise ValueError(
            "build_detection_model: expected MODEL.META_ARCHITECTURE one of {}, got {}; "
            "correct the configuration".format(", ".join(_DETECTION_META_ARCHITECTURES), name)
        )
    refuse_not_carried(cfg)
    return _DETECTION_META_ARCHITECTURES[name](cfg)
