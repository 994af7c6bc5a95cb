"""Old place of FBNet: an import says that it is not carried."""
from fcos_core.config.not_carried import FBNET

raise ImportError(FBNET.format(__name__))
