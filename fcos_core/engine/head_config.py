"""Where the config keeps what all dense heads have: NUM_CLASSES and NMS_TH."""

__all__ = ["head_section"]

# The switches of the dense heads and their sections, in the order in which a model is built.
_SECTIONS = (("ATSS_ON", "ATSS"), ("FCOS_ON", "FCOS"), ("RETINANET_ON", "RETINANET"))


def head_section(cfg):
    """The section of the dense head that is switched on, for example ``cfg.MODEL.FCOS``.

    Raises:
        ValueError: none is.
    """
    for switch, section in _SECTIONS:
        if cfg.MODEL.get(switch, False):
            return cfg.MODEL[section]
    raise ValueError(
        "head_section: expected one of {} to be True, got none; switch the head of the model on".format(
            ", ".join("MODEL." + switch for switch, _ in _SECTIONS)
        )
    )
