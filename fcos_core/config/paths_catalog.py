"""Names of data sets and of pretrained weights, and where they lie.

A project can point the key PATHS_CATALOG to a file of its own with these two classes; therefore this file imports
nothing of the package.
"""
import difflib
import os


def split_dataset_path(name):
    """Take a data set given as paths apart.

    Args:
        name (str): "path/instances.json:path/to/images" or "path/to/VOCfolder:split".  Drive letters (C:\\...) are not
            mistaken for the separator.

    Returns:
        tuple[str, str] | None: left and right of the separating colon, None if there is not exactly one.
    """
    separators = []
    for place, letter in enumerate(name):
        if letter != ":":
            continue
        before = name[separators[-1] + 1 if separators else 0:place]
        is_drive = len(before) == 1 and before.isalpha() and name[place + 1:place + 2] in ("/", "\\")
        if not is_drive:
            separators.append(place)
    if len(separators) != 1:
        return None
    left, right = name[:separators[0]], name[separators[0] + 1:]
    return (left, right) if left and right else None


def _coco(images, annotations):
    return {"img_dir": "coco/" + images, "ann_file": "coco/annotations/" + annotations + ".json"}


def _datasets():
    sets = {
        "coco_2017_train": _coco("train2017", "instances_train2017"),
        "coco_2017_val": _coco("val2017", "instances_val2017"),
        "coco_2017_test_dev": _coco("test2017", "image_info_test-dev2017"),
        "coco_2014_train": _coco("train2014", "instances_train2014"),
    }
    for part in ("val", "minival", "valminusminival"):
        sets["coco_2014_" + part] = _coco("val2014", "instances_{}2014".format(part))
    for part, images in (("train", "train"), ("val", "val"), ("minival", "val"), ("valminusminival", "val")):
        sets["keypoints_coco_2014_" + part] = _coco(images + "2014", "person_keypoints_{}2014".format(part))
    for year in ("2007", "2012"):
        for split in ("train", "val", "test"):
            sets["voc_{}_{}".format(year, split)] = {"data_dir": "voc/VOC" + year, "split": split}
            if (year, split) != ("2012", "test"):
                sets["voc_{}_{}_cocostyle".format(year, split)] = {
                    "img_dir": "voc/VOC{}/JPEGImages".format(year),
                    "ann_file": "voc/VOC{}/Annotations/pascal_{}{}.json".format(year, split, year)}
    for split in ("train", "val", "test"):
        sets["cityscapes_fine_instanceonly_seg_{}_cocostyle".format(split)] = {
            "img_dir": "cityscapes/images",
            "ann_file": "cityscapes/annotations/instancesonly_filtered_gtFine_{}.json".format(split)}
        if split != "test":
            sets["shapes_" + split] = {"split": split}
    return sets


class DatasetCatalog(object):
    """Names of data sets.

    Attributes:
        DATA_DIR (str): folder that the paths of DATASETS are relative to; the environment variable FCOS_CORE_DATA
            goes before it.
        DATASETS (dict): name -> paths; names may be added.
    """

    DATA_DIR = "datasets"
    DATASETS = _datasets()

    @staticmethod
    def get(name):
        """Class and arguments of a data set.

        Args:
            name (str): a key of DATASETS, the built-in "shapes_train" and "shapes_val", or own data:
                "path/instances.json:path/to/images" (COCO format) or "path/to/VOCfolder:split" (VOC format).

        Returns:
            dict: `factory` (name of a class in fcos_core.data.datasets) and `args` (keyword arguments; build_dataset
            adds the transforms).

        Raises:
            RuntimeError: unknown name.
        """
        if name in DatasetCatalog.DATASETS:
            return DatasetCatalog._get_listed(name)
        paths = split_dataset_path(name)
        if paths is not None:
            if paths[0].lower().endswith(".json"):
                # Own images without boxes are there on purpose.
                return {"factory": "COCODataset",
                        "args": {"ann_file": paths[0], "root": paths[1], "remove_images_without_annotations": False}}
            return {"factory": "PascalVOCDataset",
                    "args": {"data_dir": paths[0], "split": paths[1], "classes": "infer"}}
        close = difflib.get_close_matches(name, DatasetCatalog.DATASETS, 3, 0.5)
        known = close + [other for other in sorted(DatasetCatalog.DATASETS) if other not in close]
        raise RuntimeError(
            "DatasetCatalog.get: expected the name of a data set, got {!r}; known are {}. Own data is named by its "
            "paths: "
            "\"path/instances.json:path/to/images\" (COCO format) or \"path/to/VOCfolder:split\" (VOC format)".format(
                name, ", ".join(known)))

    @staticmethod
    def _get_listed(name):
        entry = DatasetCatalog.DATASETS[name]
        root = os.environ.get("FCOS_CORE_DATA") or DatasetCatalog.DATA_DIR
        if name in ("shapes_train", "shapes_val"):
            return {"factory": "ShapesDataset", "args": {"root": _writable(root, "shapes"), "split": entry["split"]}}
        # Legacy: the kind is read off the name, "coco" (also "cocostyle") before "voc".
        if "coco" in name or "ann_file" in entry:
            return {"factory": "COCODataset", "args": {"root": os.path.join(root, entry["img_dir"]),
                                                       "ann_file": os.path.join(root, entry["ann_file"])}}
        return {"factory": "PascalVOCDataset",
                "args": {"data_dir": os.path.join(root, entry["data_dir"]), "split": entry["split"]}}


def _writable(root, name):
    """root/name, or a folder in the user's cache if that can be neither found nor made."""
    folder = os.path.join(root, name)
    place = folder
    while not os.path.isdir(place):
        place = os.path.dirname(os.path.abspath(place))
    if os.path.isdir(folder) or os.access(place, os.W_OK):
        return folder
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "fcos_core", "datasets", name)


class ModelCatalog(object):
    """Web addresses of pretrained weights, for values of MODEL.WEIGHT that start with catalog://."""

    S3_C2_DETECTRON_URL = "https://dl.fbaipublicfiles.com/detectron"
    C2_IMAGENET_MODELS = {
        "MSRA/R-50": "ImageNetPretrained/MSRA/R-50.pkl",
        "MSRA/R-50-GN": "ImageNetPretrained/47261647/R-50-GN.pkl",
        "MSRA/R-101": "ImageNetPretrained/MSRA/R-101.pkl",
        "MSRA/R-101-GN": "ImageNetPretrained/47592356/R-101-GN.pkl",
        "FAIR/20171220/X-101-32x8d": "ImageNetPretrained/20171220/X-101-32x8d.pkl",
        "FAIR/20171220/X-101-64x4d": "ImageNetPretrained/20171220/X-101-64x4d.pkl",
    }
    C2_DETECTRON_SUFFIX = (
        "output/train/{}coco_2014_train%3A{}coco_2014_valminusminival/generalized_rcnn/model_final.pkl")
    # id/name -> the time stamp that is part of the address
    C2_DETECTRON_MODELS = {
        "35857197/e2e_faster_rcnn_R-50-C4_1x": "01_33_49.iAX0mXvW",
        "35857345/e2e_faster_rcnn_R-50-FPN_1x": "01_36_30.cUF7QR7I",
        "35857890/e2e_faster_rcnn_R-101-FPN_1x": "01_38_50.sNxI7sX7",
        "36761737/e2e_faster_rcnn_X-101-32x8d-FPN_1x": "06_31_39.5MIHi1fZ",
        "35858791/e2e_mask_rcnn_R-50-C4_1x": "01_45_57.ZgkA7hPB",
        "35858933/e2e_mask_rcnn_R-50-FPN_1x": "01_48_14.DzEQe4wC",
        "35861795/e2e_mask_rcnn_R-101-FPN_1x": "02_31_37.KqyEK4tT",
        "36761843/e2e_mask_rcnn_X-101-32x8d-FPN_1x": "06_35_59.RZotkLKI",
        "37129812/e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x": "09_35_36.8pzTQKYK",
        "37697547/e2e_keypoint_rcnn_R-50-FPN_1x": "08_42_54.kdzV35ao",
    }

    @classmethod
    def get(cls, name):
        """Web address of a catalog name.

        Args:
            name (str): "ImageNetPretrained/<organisation>/<name>" or "Caffe2Detectron/COCO/<id>/<name>".

        Raises:
            RuntimeError: unknown name.
        """
        if name.startswith("Caffe2Detectron/COCO"):
            return cls.get_c2_detectron_12_2017_baselines(name)
        if name.startswith("ImageNetPretrained"):
            return cls.get_c2_imagenet_pretrained(name)
        raise _unknown_model("get", name)

    @classmethod
    def get_c2_imagenet_pretrained(cls, name):
        """Web address of "ImageNetPretrained/<organisation>/<name>"."""
        key = name[len("ImageNetPretrained/"):]
        if key not in cls.C2_IMAGENET_MODELS:
            raise _unknown_model("get_c2_imagenet_pretrained", name)
        return "/".join([cls.S3_C2_DETECTRON_URL, cls.C2_IMAGENET_MODELS[key]])

    @classmethod
    def get_c2_detectron_12_2017_baselines(cls, name):
        """Web address of "Caffe2Detectron/COCO/<id>/<name>", detectors published in December 2017."""
        key = name[len("Caffe2Detectron/COCO/"):]
        if key not in cls.C2_DETECTRON_MODELS:
            raise _unknown_model("get_c2_detectron_12_2017_baselines", name)
        model_id, model = key.split("/")
        data = "keypoints_" if "keypoint" in model else ""
        return "/".join([
            cls.S3_C2_DETECTRON_URL, model_id, "12_2017_baselines",
            "{}.yaml.{}".format(model, cls.C2_DETECTRON_MODELS[key]),
            cls.C2_DETECTRON_SUFFIX.format(data, data)])


def _unknown_model(function, name):
    known = ["ImageNetPretrained/" + key for key in ModelCatalog.C2_IMAGENET_MODELS]
    known += ["Caffe2Detectron/COCO/" + key for key in ModelCatalog.C2_DETECTRON_MODELS]
    close = difflib.get_close_matches(name, known, 3, 0.5)
    known = close + [other for other in known if other not in close]
    return RuntimeError("ModelCatalog.{}: expected a name of the catalog, got {!r}; known are {}".format(
        function, name, ", ".join(known)))
