"""From the head's outputs to detections; the scores are aligned with the quality of the boxes already."""
from fcos_core.modeling.rpn.selection import DistancePostProcessor, dense_options


def make_tood_postprocessor(config):
    """The post-processor that `config` describes."""
    options = config.MODEL.TOOD
    return DistancePostProcessor(strides=options.FPN_STRIDES, **dense_options(config, options))
