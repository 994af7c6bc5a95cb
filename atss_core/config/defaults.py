"""The keys are those of `fcos_core.config.defaults`, which explains them; what differs is here."""

import os
import runpy

from fcos_core.config import defaults as _defaults

# Run anew and not copied: a program may have changed the tree of fcos_core by now.
_C = runpy.run_path(_defaults.__file__)["_C"]

# A file says which head it wants.
_C.MODEL.FCOS_ON = False
# Half a pixel for the anchors of every head; in fcos_core it depends on the head.
_C.MODEL.ANCHOR_SHIFT = 0.5
_C.PATHS_CATALOG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "paths_catalog.py")
