"""From the head's outputs to detections (arXiv:2006.04388, section 3)."""

from fcos_core.modeling.rpn.gfl.distances import expected_distances
from fcos_core.modeling.rpn.selection import DistancePostProcessor, dense_options


class GFLPostProcessor(DistancePostProcessor):
    """Turn predictions into BoxLists; see DistancePostProcessor for the arguments."""

    def distances(self, regression):
        """Means of the distributions: logits [N, K, 4 * (n + 1)] -> [N, K, 4]."""
        return expected_distances(regression)


def make_gfl_postprocessor(config):
    """The post-processor that `config` describes."""
    options = config.MODEL.GFL
    return GFLPostProcessor(strides=options.ANCHOR_STRIDES, **dense_options(config, options))
