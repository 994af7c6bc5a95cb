"""A thin FCOS of two classes for tests that need a real model but not its size."""
from fcos_core.config import cfg as default_cfg

_THIN = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.CONV_BODY": "R-50-FPN-RETINANET",
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RETINANET.USE_C5": False,
    "MODEL.FCOS.NUM_CONVS": 1,
    "MODEL.FCOS.NUM_CLASSES": 3,
    "MODEL.FCOS.INFERENCE_TH": 0.001,
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 200,
    "DATALOADER.SIZE_DIVISIBILITY": 32,
}


def thin_config(*pairs):
    """The config, with KEY, VALUE, KEY, VALUE ... on top."""
    cfg = default_cfg.clone()
    cfg.merge_from_list([word for pair in _THIN.items() for word in pair] + list(pairs))
    return cfg
