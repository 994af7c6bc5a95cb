"""The data sets.  `DatasetCatalog.get` names one of these classes as `factory`."""
from .coco import COCODataset
from .concat_dataset import ConcatDataset
from .list_dataset import ListDataset
from .shapes import ShapesDataset
from .voc import PascalVOCDataset

__all__ = ["COCODataset", "ConcatDataset", "ListDataset", "PascalVOCDataset", "ShapesDataset"]
