"""What the predecessors had and this package has not: said in one sentence, with what to use instead.

Two-stage, mask and keypoint heads and FBNet are not carried. Their config keys are accepted (legacy.py), so that old
yaml files load; a configuration that asks for such a model, and an import of its code, end with one of these sentences.
"""

TWO_STAGE = (
    "{}: two-stage detectors (RPN, box, mask and keypoint heads) are not carried by this package, which has the "
    "one-stage heads FCOS, ATSS and RetinaNet; use one of these, or torchvision.models.detection for a two-stage model"
)
MASK_KEYPOINT = (
    "{}: masks and keypoints are not predicted by this package, which detects boxes; set {} to False, or use "
    "torchvision.models.detection for them"
)
FBNET = (
    "{}: FBNet is not carried by this package; use MNV2-FPN-RETINANET for a small backbone, or R-50-FPN-RETINANET"
)
RESULTS = (
    "{}: masks and keypoints are not predicted by this package, which detects boxes; "
    "prepare_for_coco_detection writes these"
)


def refuse_not_carried(cfg):
    """Refuse a configuration of a model that is not carried.

    Args:
        cfg: MODEL is read.

    Raises:
        ValueError: it asks for a mask or keypoint head, for a two-stage detector, or for FBNet.
    """
    for key in ("MASK_ON", "KEYPOINT_ON"):
        if cfg.MODEL.get(key, False):
            raise ValueError(MASK_KEYPOINT.format("MODEL.{} True".format(key), "MODEL." + key))
    if cfg.MODEL.BACKBONE.CONV_BODY == "FBNet":
        raise ValueError(FBNET.format("MODEL.BACKBONE.CONV_BODY FBNet"))
    # Every dense file that sets the pyramid of the box head (RetinaNet's do) also says that there is no second stage.
    if cfg.MODEL.ROI_HEADS.USE_FPN and not cfg.MODEL.RPN_ONLY:
        raise ValueError(
            TWO_STAGE.format("MODEL.ROI_HEADS.USE_FPN True with MODEL.RPN_ONLY False")
            + "; for a dense head set MODEL.RPN_ONLY to True"
        )


def module_getattr(module, sentences):
    """The `__getattr__` of a module some of whose old names are not carried.

    Args:
        module (str): its name.
        sentences (dict): old name -> sentence with one place for the full name.

    Returns:
        function that raises ImportError with the sentence for these names, AttributeError for others.
    """

    def getattr_of_module(name):
        if name in sentences:
            raise ImportError(sentences[name].format("{}.{}".format(module, name)))
        raise AttributeError("module {!r} has no attribute {!r}".format(module, name))

    return getattr_of_module
