"""Data sets, transforms, samplers and loaders."""
from .build import make_data_loader
from .catalog import num_classes_of, resolve_num_classes

__all__ = ["make_data_loader", "num_classes_of", "resolve_num_classes"]
