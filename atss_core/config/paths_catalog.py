"""Names of data sets and of pretrained weights: those of `fcos_core`, but for one address."""

from fcos_core.config.paths_catalog import DatasetCatalog
from fcos_core.config.paths_catalog import ModelCatalog as _ModelCatalog

__all__ = ["DatasetCatalog", "ModelCatalog"]


class ModelCatalog(_ModelCatalog):
    """See `fcos_core.config.paths_catalog.ModelCatalog`."""

    C2_IMAGENET_MODELS = dict(
        _ModelCatalog.C2_IMAGENET_MODELS,
        **{"FAIR/20171220/X-101-64x4d": "ImageNetPretrained/FBResNeXt/X-101-64x4d.pkl"}
    )
