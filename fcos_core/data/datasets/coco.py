"""Data sets in COCO's json format."""
import contextlib
import json
import os
from collections import defaultdict

import numpy as np

from fcos_core.structures.keypoint import PersonKeypoints
from fcos_core.structures.segmentation_mask import SegmentationMask

from .boxes import BoxReport, BoxTable, warn_once
from .detection import DetectionDataset, image_size

min_keypoints_per_image = 10

_EXTRA_FIELDS = ("masks", "keypoints")
_LARGE_FILE = 20 * 2 ** 20  # bytes


def _count_visible_keypoints(anno):
    """Number of keypoints of all annotations of an image that are marked visible or occluded."""
    return sum(sum(1 for flag in ann["keypoints"][2::3] if flag > 0) for ann in anno)


def _has_only_empty_bbox(anno):
    """True if no annotation has a box of which both sides are longer than one pixel."""
    return all(any(side <= 1 for side in ann["bbox"][2:]) for ann in anno)


def has_valid_annotation(anno):
    """Whether the ancestors train on an image.

    Args:
        anno (list[dict]): annotations of the image, crowds included.

    Returns:
        bool: there is a box that is not empty and, if there are keypoints, enough of them are visible.
    """
    anno = [ann for ann in anno if "bbox" in ann]
    if not anno or _has_only_empty_bbox(anno):
        return False
    if "keypoints" not in anno[0]:
        return True
    return _count_visible_keypoints(anno) >= min_keypoints_per_image


def read_coco_json(ann_file):
    """Load and check the outline of a COCO json file.

    Args:
        ann_file (str): path.

    Returns:
        dict: with the lists `images`, `categories`, `annotations` (the latter two may be empty).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not json, or not in COCO's format.
    """
    if not os.path.isfile(ann_file):
        raise FileNotFoundError(
            "read_coco_json: expected an annotation file, got {!r}, which does not exist; relative paths start at {!r}"
            .format(ann_file, os.getcwd()))
    with open(ann_file, encoding="utf-8") as f:
        try:
            data = json.load(f)
        except ValueError as error:
            raise ValueError("read_coco_json: expected json, got {!r}: {}; is the file complete?".format(
                ann_file, error)) from error
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise ValueError(
            "read_coco_json: expected an object with a list \"images\", got {!r} without one; COCO's detection format "
            "has \"images\", \"annotations\" and \"categories\"".format(ann_file))
    for key in ("annotations", "categories"):
        if data.get(key) is None:
            data[key] = []
    if data["annotations"] and not data["categories"]:
        raise ValueError("read_coco_json: expected a list \"categories\", got {!r} without one; it names the "
                         "classes".format(
            ann_file))
    return data


def category_names(data):
    """Names of the categories of a COCO json object in the order of their ids; label k is name k - 1."""
    return [str(category["name"]) for category in sorted(data["categories"], key=lambda category: category["id"])]


def read_category_names(ann_file):
    """`category_names` of a file.  Of a large one only the part that matters is parsed: COCO's take ten seconds."""
    if not os.path.isfile(ann_file) or os.path.getsize(ann_file) < _LARGE_FILE:
        return category_names(read_coco_json(ann_file))
    with open(ann_file, "rb") as f:
        content = f.read()
    key = b'"categories"'
    if content.count(key) == 1:
        tail = content[content.index(key) + len(key):].decode("utf-8", "replace").lstrip().lstrip(":").lstrip()
        try:
            return category_names({"categories": json.JSONDecoder().raw_decode(tail)[0]})
        except (ValueError, KeyError, TypeError):
            pass  # it was the value of something, not the key
    return category_names(read_coco_json(ann_file))


class COCODataset(DetectionDataset):
    """Images and boxes of a COCO json file.

    Categories become the labels 1, 2, ... in the order of their ids, images come in the order of theirs.  Crowd
    annotations are left out; an image without boxes has a BoxList of length 0.

    Args:
        ann_file (str): json file.
        root (str): folder that its file names are relative to.
        remove_images_without_annotations (bool): leave out images on which the ancestors would not train, see
            `has_valid_annotation`.  Images without boxes do train in this package, as pure background.
        transforms (callable | None): (image, target) -> (image, target).
        fields (sequence[str]): what the BoxLists carry besides labels, for own heads: "masks" (SegmentationMask of
            polygons) and "keypoints" (PersonKeypoints).  The older packages always loaded what there was; it is kept in
            memory, and no head of this package looks at it.

    Attributes:
        ids (list[int]): image ids, ascending.
        id_to_img_map (dict): index -> image id.
        json_category_id_to_contiguous_id, contiguous_category_id_to_json_id (dict): category id <-> label.
        box_report (BoxReport): what was wrong with boxes.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: the file is not in COCO's format, or an unknown field.
    """

    def __init__(self, ann_file, root, remove_images_without_annotations, transforms=None, fields=()):
        super(COCODataset, self).__init__(transforms)
        unknown = sorted(set(fields) - set(_EXTRA_FIELDS))
        if unknown:
            raise ValueError("COCODataset: expected fields among {}, got {}; labels are always there".format(
                ", ".join(_EXTRA_FIELDS), unknown))
        self._fields, self._extras = tuple(fields), []
        self.ann_file = ann_file
        self.root = root
        if not os.path.isdir(root):
            raise FileNotFoundError("COCODataset: expected an image folder, got {!r}, which does not exist; it "
                                    "belongs to {!r}"
                                    .format(root, ann_file))
        data = read_coco_json(ann_file)
        self.categories = category_names(data)
        category_ids = sorted(category["id"] for category in data["categories"])
        self.json_category_id_to_contiguous_id = {v: k for k, v in enumerate(category_ids, 1)}
        self.contiguous_category_id_to_json_id = {v: k for k, v in self.json_category_id_to_contiguous_id.items()}
        self.has_annotations = bool(data["annotations"])
        self._coco = None

        by_image = defaultdict(list)
        for annotation in data["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        images = sorted(data["images"], key=lambda image: image["id"])
        if remove_images_without_annotations:
            images = [image for image in images if has_valid_annotation(by_image.get(image["id"], []))]
        self._take_images(images)
        self._take_boxes(by_image)

    def _take_images(self, images):
        self.ids = [image["id"] for image in images]
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("COCODataset: expected distinct image ids, got some twice in {!r}; number the images anew"
                             .format(self.ann_file))
        self.id_to_img_map = dict(enumerate(self.ids))
        self._names, self._sizes = [], []
        for image in images:
            if not image.get("file_name"):
                raise ValueError("COCODataset: expected every image to have a \"file_name\", got none for id {} in {!r}"
                                 .format(image["id"], self.ann_file))
            self._names.append(image["file_name"])
            size = image.get("width"), image.get("height")
            if not (size[0] and size[1]):  # some tools leave it out
                size = image_size(os.path.join(self.root, image["file_name"]))
            self._sizes.append((int(size[0]), int(size[1])))

    def _take_boxes(self, by_image):
        self.box_report = BoxReport()
        xywh, labels, counts = [], [], []
        for image_id, name in zip(self.ids, self._names):
            before = len(labels)
            for annotation in by_image.get(image_id, ()):
                if not annotation.get("iscrowd", 0):
                    self._take_box(annotation, name, xywh, labels)
            counts.append(len(labels) - before)
        xywh = np.array(xywh, np.float64).reshape(-1, 4).astype(np.float32)
        # x2 = x1 + max(w - 1, 0), in float32 as in BoxList.
        far = xywh[:, :2] + np.maximum(xywh[:, 2:] - np.float32(1), np.float32(0))
        fields = {"labels": np.array(labels, np.int64)}
        if self._fields:
            fields["number"] = np.arange(len(labels))  # some boxes will be dropped
        self._table = BoxTable(np.concatenate([xywh[:, :2], far], 1), fields, counts, self._sizes, self._names,
                               self.box_report)
        warn_once(self.box_report, "{} {}".format(type(self).__name__, self.ann_file))

    def _take_box(self, annotation, name, xywh, labels):
        box = annotation.get("bbox")
        label = self.json_category_id_to_contiguous_id.get(annotation.get("category_id"))
        if label is None or not isinstance(box, (list, tuple)) or len(box) != 4:
            self.box_report.total += 1
            self.box_report.drop("of an unknown category" if label is None else "without four numbers", 1, name)
            return
        xywh.append(box)
        labels.append(label)
        if self._fields:
            self._extras.append((annotation.get("segmentation", []), annotation.get("keypoints", [0] * 51)))

    @property
    def coco(self):
        """The file as `pycocotools.coco.COCO`, read at first use; what scorers need and files lack is filled in."""
        if self._coco is None:
            from pycocotools.coco import COCO

            data = read_coco_json(self.ann_file)
            data.setdefault("info", {})
            for number, annotation in enumerate(data["annotations"], 1):
                annotation.setdefault("id", number)
                annotation.setdefault("iscrowd", 0)
                if "area" not in annotation and "bbox" in annotation:
                    annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            self._coco = COCO()
            self._coco.dataset = data
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                self._coco.createIndex()
        return self._coco

    def __getstate__(self):
        # Worker processes need no scorer; where they are spawned it would be pickled for each of them.
        state = dict(self.__dict__)
        state["_coco"] = None
        return state

    def __len__(self):
        return len(self.ids)

    def image_name(self, index):
        """File name of an image as the json file has it."""
        return self._names[index]

    def image_path(self, index):
        """Path of an image."""
        return os.path.join(self.root, self._names[index])

    def get_img_info(self, index):
        """dict with `id`, `file_name`, `width` and `height` (pixels) of an image, without reading it."""
        width, height = self._sizes[index]
        return {"id": self.ids[index], "file_name": self._names[index], "width": width, "height": height}

    def get_target(self, index):
        """BoxList (xyxy, clipped, none empty) with the int64 field `labels` and the extra fields."""
        target = self._table.boxlist(index, self._sizes[index])
        if not self._fields:
            return target
        extras = [self._extras[number] for number in target.get_field("number").tolist()]
        target = target.copy_with_fields("labels")
        if "masks" in self._fields:
            # run lengths, which crowds have, are no polygons
            outlines = [outline if isinstance(outline, list) else [] for outline, _ in extras]
            target.add_field("masks", SegmentationMask(outlines, target.size, mode="poly"))
        if "keypoints" in self._fields:
            target.add_field("keypoints", PersonKeypoints([points for _, points in extras], target.size))
        return target
