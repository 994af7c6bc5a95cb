"""The one place that chooses the dense head."""
from fcos_core.modeling.rpn.fcos.fcos import build_fcos


def build_rpn(cfg, in_channels):
    """The dense head that `cfg` asks for.

    Args:
        cfg: MODEL.FCOS_ON switches FCOS on.
        in_channels: channels of the pyramid.

    Raises:
        ValueError: no head that this package carries is on.
    """
    if cfg.MODEL.FCOS_ON:
        return build_fcos(cfg, in_channels)
    raise ValueError(
        "build_rpn: expected MODEL.FCOS_ON True, got False; "
        "FCOS is the dense head of this version, two-stage heads are not part of it"
    )
