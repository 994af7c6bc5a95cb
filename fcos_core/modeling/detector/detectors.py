"""From a configuration to a detector."""
from fcos_core.modeling.detector.generalized_rcnn import GeneralizedRCNN

_DETECTION_META_ARCHITECTURES = {"GeneralizedRCNN": GeneralizedRCNN}


def build_detection_model(cfg):
    """The detector that `cfg` describes, with freshly initialised weights, in training mode, on the CPU.

    Raises:
        ValueError: an unknown MODEL.META_ARCHITECTURE.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in _DETECTION_META_ARCHITECTURES:
        raise ValueError(
            "build_detection_model: expected MODEL.META_ARCHITECTURE one of {}, got {}; "
            "correct the configuration".format(", ".join(_DETECTION_META_ARCHITECTURES), name)
        )
    return _DETECTION_META_ARCHITECTURES[name](cfg)
