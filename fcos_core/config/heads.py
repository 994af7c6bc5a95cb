"""Which dense head a configuration asks for.

Old yaml files switch their head on and leave MODEL.FCOS_ON, which is True by default, as it is.  So the switches of the
other heads go before FCOS_ON, unless FCOS_ON was asked for in the same place as well.
"""

# The heads: name, which is that of the section in MODEL, and "module:function(cfg, in_channels)" that builds it; of
# several that are on, the first one is built.  A new head has one line here, see docs/new_head.md.
HEADS = {
    "ATSS": "fcos_core.modeling.rpn.atss.atss:build_atss",
    "RETINANET": "fcos_core.modeling.rpn.retinanet.retinanet:build_retinanet",
    "GFL": "fcos_core.modeling.rpn.gfl.gfl:build_gfl",
    "TOOD": "fcos_core.modeling.rpn.tood.tood:build_tood",
    "FCOS": "fcos_core.modeling.rpn.fcos.fcos:build_fcos",
}


def chosen_head(cfg):
    """Name of the dense head that `cfg` switches on, a key of HEADS.

    Raises:
        ValueError: none is on, or two others than FCOS.
    """
    on = [head for head in HEADS if cfg.MODEL.get(head + "_ON", False)]
    if not on:
        switches = ", ".join("MODEL." + head + "_ON" for head in HEADS)
        raise ValueError(
            "chosen_head: expected one of {} to be True, got none; switch one on: two-stage detectors, which need "
            "none, are not carried by this package".format(switches)
        )
    if len([head for head in on if head != "FCOS"]) > 1:
        raise ValueError(_too_many("chosen_head", on))
    return on[0]


def head_section(cfg):
    """The section of the dense head that is switched on, for example ``cfg.MODEL.FCOS``."""
    return cfg.MODEL[chosen_head(cfg)]


def settle_head(cfg, *asked_for):
    """Leave at most one of the switches on, in place.

    Args:
        cfg: not frozen.
        asked_for: sets of dotted names of keys that somebody set; those that overrule the others first, that is,
            options before a file.

    Raises:
        ValueError: several heads were asked for in the same place.
    """
    on = [head for head in HEADS if cfg.MODEL[head + "_ON"]]
    for names in asked_for:
        asked = [head for head in on if "MODEL." + head + "_ON" in names]
        if len(asked) > 1:
            raise ValueError(_too_many("load_config", asked))
        if asked:
            for head in on:
                cfg.MODEL[head + "_ON"] = head in asked
            return


def _too_many(function, heads):
    return "{}: expected one dense head, got {}; set {} to False".format(
        function,
        " and ".join("MODEL.{}_ON True".format(head) for head in heads),
        "the others" if len(heads) > 2 else "one of them",
    )
