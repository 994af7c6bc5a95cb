"""Which dense head a configuration asks for.

Old yaml files switch their head on and leave MODEL.FCOS_ON, which is True by default, as it is.  So ATSS_ON and
RETINANET_ON go before FCOS_ON, unless FCOS_ON was asked for in the same place as well.
"""

# Names of the heads, which are those of their sections in MODEL; the first one that is on is built.
HEADS = ("ATSS", "RETINANET", "FCOS")


def chosen_head(cfg):
    """Name of the dense head that `cfg` switches on, one of HEADS.

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
