"""Old place of the second stage of two-stage detectors: an import says that it is not carried."""
from fcos_core.config.not_carried import TWO_STAGE

raise ImportError(TWO_STAGE.format(__name__))
