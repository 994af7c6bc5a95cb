"""Old path of the functions of `fcos_core.layers.deform_conv`."""

from fcos_core.layers.deform_conv import deform_conv, modulated_deform_conv

__all__ = ["DeformConvFunction", "ModulatedDeformConvFunction", "deform_conv", "modulated_deform_conv"]


class DeformConvFunction:
    """Old name of the function, which differentiates by itself: `DeformConvFunction.apply(...)`."""

    apply = staticmethod(deform_conv)


class ModulatedDeformConvFunction:
    """Old name of the function, which differentiates by itself: `ModulatedDeformConvFunction.apply(...)`."""

    apply = staticmethod(modulated_deform_conv)
