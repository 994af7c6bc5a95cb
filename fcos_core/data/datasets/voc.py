"""Data sets in the folder layout of Pascal VOC."""
import functools
import os
import xml.etree.ElementTree as ElementTree
from collections import namedtuple

import numpy as np

from .boxes import BoxReport, BoxTable, warn_once
from .detection import DetectionDataset, image_size

# One annotation file: size (width, height) or None; names, boxes float64 [M, 4] and flags of the objects, as written.
VOCAnnotation = namedtuple("VOCAnnotation", "size names boxes difficult")

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")


def read_voc_xml(path):
    """Read an annotation file, from memory if it was read before and has not changed.

    Args:
        path (str): xml file.

    Returns:
        VOCAnnotation

    Raises:
        FileNotFoundError: no such file.
        ValueError: no xml, or an object without name or box; the message names the file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            "read_voc_xml: expected an annotation file, got {!r}, which does not exist; every image of a split needs "
            "one, "
            "also an image without objects".format(path))
    return _read_voc_xml(path, os.stat(path).st_mtime)


@functools.lru_cache(maxsize=1 << 16)
def _read_voc_xml(path, _modified):
    try:
        root = ElementTree.parse(path).getroot()
        names, boxes, difficult = [], [], []
        for thing in root.iter("object"):
            names.append(thing.find("name").text.strip())
            box = thing.find("bndbox")
            boxes.append([float(box.find(side).text) for side in ("xmin", "ymin", "xmax", "ymax")])
            flag = thing.find("difficult")
            difficult.append(flag is not None and int(flag.text or 0) == 1)
        size = root.find("size")
        if size is not None:
            size = int(float(size.find("width").text)), int(float(size.find("height").text))
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            "read_voc_xml: expected a VOC annotation with <size> and, per <object>, <name> and <bndbox> with four "
            "numbers, "
            "got {!r} ({}); repair the file".format(path, error)) from error
    if size is not None and (size[0] <= 0 or size[1] <= 0):
        size = None  # some tools write 0
    return VOCAnnotation(size, names, np.array(boxes, np.float64).reshape(-1, 4), np.array(difficult, bool))


def infer_voc_classes(data_dir):
    """Class names of an own folder, without the background.

    Args:
        data_dir (str): folder with `Annotations`.

    Returns:
        list[str]: the lines of `classes.txt` in the folder if there is one, else all names that occur in any annotation
        file, sorted; names that differ in case only are one class.
    """
    listed = os.path.join(data_dir, "classes.txt")
    if os.path.isfile(listed):
        with open(listed, encoding="utf-8") as f:
            return [line.strip() for line in f if line.strip()]
    folder = os.path.join(data_dir, "Annotations")
    if not os.path.isdir(folder):
        return []
    names = set()
    for entry in os.listdir(folder):
        if entry.lower().endswith(".xml"):
            names.update(read_voc_xml(os.path.join(folder, entry)).names)
    first_spelling = {}
    for name in sorted(names):
        first_spelling.setdefault(_key(name), name)
    return [first_spelling[key] for key in sorted(first_spelling)]


def _key(name):
    return name.lower().strip()


class PascalVOCDataset(DetectionDataset):
    """Images and boxes of a folder with `Annotations`, `JPEGImages` and `ImageSets/Main/<split>.txt`.

    VOC counts pixels from 1: one is subtracted from all coordinates.

    Args:
        data_dir (str): the folder.
        split (str): name of the list in ImageSets/Main.
        use_difficult (bool): keep objects that are marked difficult.
        transforms (callable | None): (image, target) -> (image, target).
        classes (sequence[str] | "infer" | None): class names without the background; "infer" takes those of
            `infer_voc_classes`; None the 20 of Pascal VOC (the attribute CLASSES, which a subclass may replace).

    Attributes:
        ids (list[str]): names of the images without ending, in the order of the list.
        box_report (BoxReport): what was wrong with boxes.

    Raises:
        FileNotFoundError: the folder, the list, or an annotation file does not exist.
        ValueError: an annotation file is broken or has a class that is not among the classes.
    """

    CLASSES = (
        "__background__ ", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")

    def __init__(self, data_dir, split, use_difficult=False, transforms=None, classes=None):
        super(PascalVOCDataset, self).__init__(transforms)
        self.root = data_dir
        self.image_set = split
        self.keep_difficult = use_difficult
        self.ids = _read_split(data_dir, split)
        self.id_to_img_map = dict(enumerate(self.ids))
        if classes is not None:
            names = infer_voc_classes(data_dir) if isinstance(classes, str) and classes == "infer" else list(classes)
            self.CLASSES = (type(self).CLASSES[0],) + tuple(names)
        self.class_to_ind = {_key(name): label for label, name in enumerate(self.CLASSES)}
        self.categories = [name.strip() for name in self.CLASSES[1:]]
        self._files = _image_files(os.path.join(data_dir, "JPEGImages"))
        self._annotations = os.path.join(data_dir, "Annotations")
        self.has_annotations = any(os.path.isfile(self._xml(image)) for image in self.ids)
        self._load()

    def _xml(self, image):
        return os.path.join(self._annotations, image + ".xml")

    def _load(self):
        """Reads all annotation files of the split."""
        self._sizes, counts, boxes, labels, difficult = [], [], [], [], []
        for index, image in enumerate(self.ids):
            if not self.has_annotations:
                self._sizes.append(None)
                counts.append(0)
                continue
            annotation = read_voc_xml(self._xml(image))
            self._sizes.append(annotation.size or image_size(self.image_path(index)))
            counts.append(len(annotation.names))
            boxes.append(annotation.boxes - 1)
            labels.extend(self._label(name, image) for name in annotation.names)
            difficult.append(annotation.difficult)
        self.box_report = BoxReport()
        self._table = BoxTable(
            np.concatenate(boxes) if boxes else np.zeros((0, 4)),
            {"labels": np.array(labels, np.int64),
             "difficult": np.concatenate(difficult) if difficult else np.zeros(0, bool)},
            counts, self._sizes, [image + ".xml" for image in self.ids], self.box_report)
        warn_once(self.box_report, "{} {}:{}".format(type(self).__name__, self.root, self.image_set))

    def _label(self, name, image):
        label = self.class_to_ind.get(_key(name), 0)
        if label == 0:
            raise ValueError(
                "PascalVOCDataset: expected one of the classes {}, got {!r} in {!r}; for classes of your own name the "
                "folder "
                "as \"path/to/folder:split\" in DATASETS".format(", ".join(self.categories), name, self._xml(image)))
        return label

    def __len__(self):
        return len(self.ids)

    def image_name(self, index):
        """File name of an image."""
        return self._files.get(self.ids[index], self.ids[index] + ".jpg")

    def image_path(self, index):
        """Path of an image."""
        return os.path.join(self.root, "JPEGImages", self.image_name(index))

    def get_img_info(self, index):
        """dict with `height` and `width` (pixels) of an image, from its annotation or else from the file's header."""
        size = self._sizes[index] or image_size(self.image_path(index))
        return {"height": size[1], "width": size[0]}

    def get_groundtruth(self, index):
        """BoxList (xyxy from 0, clipped, none empty) with the fields `labels` (int64) and `difficult` (bool)."""
        info = self.get_img_info(index)
        return self._table.boxlist(index, (info["width"], info["height"]), None if self.keep_difficult else "difficult")

    get_target = get_groundtruth

    def map_class_id_to_class_name(self, class_id):
        """Name of a label; 0 is the background."""
        return self.CLASSES[class_id]


def _read_split(data_dir, split):
    folder = os.path.join(data_dir, "ImageSets", "Main")
    path = os.path.join(folder, split + ".txt")
    if not os.path.isfile(path):
        entries = os.listdir(folder) if os.path.isdir(folder) else []
        known = sorted(entry[:-4] for entry in entries if entry.endswith(".txt"))
        raise FileNotFoundError(
            "PascalVOCDataset: expected a list of image names, got {!r}, which does not exist; {}".format(
                path, "there are the splits " + ", ".join(known[:20]) if known else
                "a VOC folder has Annotations, JPEGImages and ImageSets/Main/<split>.txt"))
    with open(path, encoding="utf-8") as f:
        return [line.strip() for line in f if line.strip()]


def _image_files(folder):
    """Name without ending -> file name, of the pictures in a folder; .jpg wins where there are several."""
    files = {}
    for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        stem, ending = os.path.splitext(entry)
        if ending.lower() in _IMAGE_ENDINGS and (stem not in files or ending == ".jpg"):
            files[stem] = entry
    return files
