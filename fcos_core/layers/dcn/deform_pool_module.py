"""Old path of the modules of `fcos_core.layers.deform_psroi_pooling`."""

from fcos_core.layers.deform_psroi_pooling import (
    DeformRoIPooling,
    DeformRoIPoolingPack,
    ModulatedDeformRoIPoolingPack,
)

__all__ = ["DeformRoIPooling", "DeformRoIPoolingPack", "ModulatedDeformRoIPoolingPack"]
