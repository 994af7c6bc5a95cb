"""Looking names of data sets up: their entry, their classes, and what that means for the config."""
import os

from fcos_core.config import paths_catalog as own_catalog
from fcos_core.config.heads import HEADS, chosen_head
from fcos_core.utils.imports import import_file

from .datasets.coco import read_category_names
from .datasets.shapes_render import CLASSES as SHAPES_CLASSES
from .datasets.voc import PascalVOCDataset, infer_voc_classes


def load_catalog(path):
    """The class DatasetCatalog of the file that PATHS_CATALOG names."""
    # Not a second copy of our own module: names that a program added to DatasetCatalog.DATASETS must be there.
    if not path or (os.path.exists(path) and os.path.samefile(path, own_catalog.__file__)):
        return own_catalog.DatasetCatalog
    if not os.path.isfile(path):
        raise FileNotFoundError("load_catalog: expected PATHS_CATALOG to be a Python file, got {!r}, which does not "
                                "exist; "
                                "leave the key out to use the built-in one".format(path))
    return import_file("fcos_core.config.paths_catalog_of_the_config", path).DatasetCatalog


def find_dataset(name, catalog):
    """Entry of a data set: dict with `factory` and `args`.

    Args:
        name (str): see `DatasetCatalog.get`.
        catalog: class with `get(name)`.  What it does not know (an older file knows neither paths nor the built-in
            set) is looked up in the catalog of this package.
    """
    if catalog is not own_catalog.DatasetCatalog:
        try:
            return catalog.get(name)
        except (KeyError, RuntimeError):
            pass
    return own_catalog.DatasetCatalog.get(name)


def class_names_of(name, catalog):
    """Names of the foreground classes of a data set, without reading its images.

    Returns:
        list[str] | None: None if only the data set itself could tell.
    """
    entry = find_dataset(name, catalog)
    factory, args = entry["factory"], entry["args"]
    if factory == "ShapesDataset":
        return list(SHAPES_CLASSES)
    if factory == "COCODataset":
        return read_category_names(args["ann_file"])
    if factory == "PascalVOCDataset":
        classes = args.get("classes")
        if classes is None:
            return [known.strip() for known in PascalVOCDataset.CLASSES[1:]]
        return infer_voc_classes(args["data_dir"]) if classes == "infer" else list(classes)
    return None


def _count_classes(cfg, names):
    """Number of foreground classes that the data sets agree on, or None if none of them says."""
    catalog = load_catalog(cfg.PATHS_CATALOG)
    first_name, first = None, None
    for name in [names] if isinstance(names, str) else names:
        classes = class_names_of(name, catalog)
        if not classes:  # images to predict on need no categories
            continue
        if first is None:
            first_name, first = name, classes
        elif classes != first:
            raise ValueError(
                "num_classes_of: expected the same classes in all data sets, got {} in {!r} and {} in {!r}; give all "
                "files "
                "the same list of categories (VOC folders: a file classes.txt, one name per line)".format(
                    _brief(first), first_name, _brief(classes), name))
    return None if first is None else len(first)


def num_classes_of(cfg, names):
    """Number of classes of data sets, background included, as the NUM_CLASSES keys count.

    Args:
        cfg (CfgNode): key PATHS_CATALOG.
        names (sequence[str]): see `DatasetCatalog.get`.

    Returns:
        int

    Raises:
        ValueError: the data sets have different classes, or none of them names any.
    """
    count = _count_classes(cfg, names)
    if count is None:
        raise ValueError("num_classes_of: expected a data set that names its classes, got {}; set the number by "
                         "MODEL.FCOS.NUM_CLASSES (background included)".format(names))
    return count + 1


def resolve_num_classes(cfg, names, explicit):
    """Make the NUM_CLASSES keys of the dense heads fit the data.

    Args:
        cfg (CfgNode): not frozen; MODEL.FCOS, MODEL.RETINANET and MODEL.ATSS are changed.
        names (sequence[str]): the data sets, see `DatasetCatalog.get`.
        explicit (bool): the user has set the number; then it is compared instead of changed.

    Raises:
        ValueError: the data sets have different classes, or another number than the config says.
    """
    count = _count_classes(cfg, names)
    if count is None:
        return
    if explicit:
        head = chosen_head(cfg)
        said = cfg.MODEL[head].NUM_CLASSES
        if said != count + 1:
            raise ValueError(
                "resolve_num_classes: expected MODEL.{}.NUM_CLASSES to be {} ({} classes in {} and the background), "
                "got {}; "
                "correct it or leave it out".format(head, count + 1, count, tuple(names), said))
        return
    for head in HEADS:
        cfg.MODEL[head].NUM_CLASSES = count + 1


def _brief(names):
    return "{} ({}{})".format(len(names), ", ".join(names[:5]), ", ..." if len(names) > 5 else "")
