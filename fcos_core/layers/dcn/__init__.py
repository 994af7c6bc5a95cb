"""Old paths of the deformable operators, whose homes are in `fcos_core.layers`."""
