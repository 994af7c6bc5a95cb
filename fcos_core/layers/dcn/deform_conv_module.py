"""Old path of the modules of `fcos_core.layers.deform_conv`."""

from fcos_core.layers.deform_conv import DeformConv, ModulatedDeformConv, ModulatedDeformConvPack

__all__ = ["DeformConv", "ModulatedDeformConv", "ModulatedDeformConvPack"]
