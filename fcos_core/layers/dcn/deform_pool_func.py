"""Old path of `fcos_core.layers.deform_psroi_pooling`."""

from fcos_core.layers.deform_psroi_pooling import deform_roi_pooling

__all__ = ["DeformRoIPoolingFunction", "deform_roi_pooling"]


class DeformRoIPoolingFunction:
    """Old name of the function, which differentiates by itself: `DeformRoIPoolingFunction.apply(...)`."""

    apply = staticmethod(deform_roi_pooling)
