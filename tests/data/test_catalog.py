import os

import pytest

from fcos_core.config import cfg as defaults
from fcos_core.config.paths_catalog import DatasetCatalog, ModelCatalog, split_dataset_path
from fcos_core.data import num_classes_of, resolve_num_classes
from fcos_core.data.catalog import find_dataset, load_catalog

from .samples import box


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("FCOS_CORE_DATA", raising=False)


@pytest.mark.parametrize("name, images, annotations", [
    ("coco_2017_train", "coco/train2017", "coco/annotations/instances_train2017.json"),
    ("coco_2017_val", "coco/val2017", "coco/annotations/instances_val2017.json"),
    ("coco_2017_test_dev", "coco/test2017", "coco/annotations/image_info_test-dev2017.json"),
    ("coco_2014_train", "coco/train2014", "coco/annotations/instances_train2014.json"),
    ("coco_2014_val", "coco/val2014", "coco/annotations/instances_val2014.json"),
    ("coco_2014_minival", "coco/val2014", "coco/annotations/instances_minival2014.json"),
    ("coco_2014_valminusminival", "coco/val2014", "coco/annotations/instances_valminusminival2014.json"),
    ("keypoints_coco_2014_train", "coco/train2014", "coco/annotations/person_keypoints_train2014.json"),
    ("keypoints_coco_2014_minival", "coco/val2014", "coco/annotations/person_keypoints_minival2014.json"),
    ("voc_2007_train_cocostyle", "voc/VOC2007/JPEGImages", "voc/VOC2007/Annotations/pascal_train2007.json"),
    ("voc_2012_val_cocostyle", "voc/VOC2012/JPEGImages", "voc/VOC2012/Annotations/pascal_val2012.json"),
    ("cityscapes_fine_instanceonly_seg_test_cocostyle", "cityscapes/images",
     "cityscapes/annotations/instancesonly_filtered_gtFine_test.json"),
])
def test_old_coco_names(name, images, annotations):
    assert DatasetCatalog.get(name) == {"factory": "COCODataset", "args": {
        "root": os.path.join("datasets", images), "ann_file": os.path.join("datasets", annotations)}}


@pytest.mark.parametrize("year", ["2007", "2012"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_old_voc_names(year, split):
    assert DatasetCatalog.get("voc_{}_{}".format(year, split)) == {
        "factory": "PascalVOCDataset", "args": {"data_dir": os.path.join("datasets", "voc/VOC" + year), "split": split}}


def test_data_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(DatasetCatalog, "DATA_DIR", "elsewhere")
    assert DatasetCatalog.get("voc_2007_val")["args"]["data_dir"] == os.path.join("elsewhere", "voc/VOC2007")
    monkeypatch.setenv("FCOS_CORE_DATA", str(tmp_path))
    assert DatasetCatalog.get("coco_2017_val")["args"]["root"] == os.path.join(str(tmp_path), "coco/val2017")
    assert DatasetCatalog.get("shapes_val") == {
        "factory": "ShapesDataset", "args": {"root": str(tmp_path / "shapes"), "split": "val"}}


@pytest.mark.parametrize("name, want", [
    ("a/b.json:c/d", ("a/b.json", "c/d")),
    (r"C:\data\b.json:D:\images", (r"C:\data\b.json", r"D:\images")),
    (r"C:\data\b.json:images", (r"C:\data\b.json", "images")),
    ("b.json:D:/images", ("b.json", "D:/images")),
    ("C:/voc:train", ("C:/voc", "train")),
    ("x:train", ("x", "train")),
    ("/abs/voc:train_1", ("/abs/voc", "train_1")),
    ("coco_2017_train", None), (":a", None), ("a:", None), ("a:b:c", None), (r"C:\data", None),
])
def test_paths_are_taken_apart(name, want):
    assert split_dataset_path(name) == want


def test_own_data_by_paths():
    # names that contain "coco" or "voc" must not be taken for those of the catalog
    assert DatasetCatalog.get("my_voc/coco.json:img") == {"factory": "COCODataset", "args": {
        "ann_file": "my_voc/coco.json", "root": "img", "remove_images_without_annotations": False}}
    assert DatasetCatalog.get("data/coco_voc:val") == {"factory": "PascalVOCDataset", "args": {
        "data_dir": "data/coco_voc", "split": "val", "classes": "infer"}}


def test_unknown_names_say_what_is_known():
    with pytest.raises(RuntimeError) as error:
        DatasetCatalog.get("coco_2017_trian")
    message = str(error.value)
    assert "known are coco_2017_train," in message  # the closest first
    assert "voc_2012_val" in message and "shapes_train" in message and "path/instances.json:path/to/images" in message


def test_names_can_be_added(monkeypatch):
    monkeypatch.setitem(DatasetCatalog.DATASETS, "mine", {"img_dir": "i", "ann_file": "a.json"})
    catalog = load_catalog(defaults.PATHS_CATALOG)
    assert catalog is DatasetCatalog
    assert find_dataset("mine", catalog)["factory"] == "COCODataset"


def test_a_catalog_file_of_the_project(tmp_path):
    path = tmp_path / "my_catalog.py"
    path.write_text(
        "class DatasetCatalog(object):\n"
        "    @staticmethod\n"
        "    def get(name):\n"
        "        return {'mine': dict(factory='COCODataset', args=dict(root='r', ann_file='a'))}[name]\n")
    catalog = load_catalog(str(path))
    assert find_dataset("mine", catalog)["args"] == {"root": "r", "ann_file": "a"}
    assert find_dataset("a.json:b", catalog)["factory"] == "COCODataset"
    assert find_dataset("shapes_val", catalog)["factory"] == "ShapesDataset"
    with pytest.raises(FileNotFoundError, match="PATHS_CATALOG"):
        load_catalog(str(tmp_path / "none.py"))


def test_model_names():
    base = "https://dl.fbaipublicfiles.com/detectron/"
    assert ModelCatalog.get("ImageNetPretrained/MSRA/R-50") == base + "ImageNetPretrained/MSRA/R-50.pkl"
    assert len(ModelCatalog.C2_IMAGENET_MODELS) == 6 and len(ModelCatalog.C2_DETECTRON_MODELS) == 10
    assert ModelCatalog.get("Caffe2Detectron/COCO/35857345/e2e_faster_rcnn_R-50-FPN_1x") == (
        base + "35857345/12_2017_baselines/e2e_faster_rcnn_R-50-FPN_1x.yaml.01_36_30.cUF7QR7I/output/train/"
        "coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl")
    assert "train/keypoints_coco_2014_train%3Akeypoints_coco_2014_valminusminival/" in ModelCatalog.get(
        "Caffe2Detectron/COCO/37697547/e2e_keypoint_rcnn_R-50-FPN_1x")
    for name in ("ImageNetPretrained/MSRA/R-51", "Caffe2Detectron/COCO/1/x", "R-50"):
        with pytest.raises(RuntimeError, match="ImageNetPretrained/MSRA/R-50"):
            ModelCatalog.get(name)


# ------------------------------------------------------------------------------------------ number of classes


IMAGES = [(1, 20, 10)]


def own(paths):
    return ":".join(paths)


def test_number_of_classes(make_coco, make_voc, make_cfg):
    coco = own(make_coco(IMAGES, [box(1, [0, 0, 5, 5])], categories=[(1, "cat"), (2, "dog"), (3, "cow")]))
    voc = make_voc({"a": (20, 10, [("cat", 1, 1, 9, 9), ("dog", 1, 1, 9, 9)])}) + ":train"
    cfg = make_cfg()
    assert num_classes_of(cfg, [coco]) == 4
    assert num_classes_of(cfg, (voc,)) == 3
    assert num_classes_of(cfg, ["shapes_train", "shapes_val"]) == 6
    assert num_classes_of(cfg, ["voc_2007_train"]) == 21


def test_number_of_classes_must_agree(make_coco, make_cfg):
    two = own(make_coco(IMAGES, name="two"))
    other = own(make_coco(IMAGES, categories=[(1, "cat"), (2, "cow")], name="other"))
    with pytest.raises(ValueError, match="cat, dog.*cat, cow"):
        num_classes_of(make_cfg(), [two, other])


def test_images_to_predict_on_have_no_say(make_coco, make_cfg):
    two = own(make_coco(IMAGES, name="two"))
    bare = own(make_coco(IMAGES, name="bare", keep=("images",)))
    cfg = make_cfg()
    assert num_classes_of(cfg, [bare, two]) == 3
    with pytest.raises(ValueError, match="NUM_CLASSES"):
        num_classes_of(cfg, [bare])
    cfg.MODEL.FCOS.NUM_CLASSES = 17
    resolve_num_classes(cfg, [bare], False)
    assert cfg.MODEL.FCOS.NUM_CLASSES == 17


def test_config_without_a_number_gets_it_from_the_data(make_coco, make_cfg):
    cfg = make_cfg()
    resolve_num_classes(cfg, [own(make_coco(IMAGES))], explicit=False)
    assert cfg.MODEL.FCOS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 3


def test_config_with_a_number_is_checked(make_coco, make_cfg):
    name = own(make_coco(IMAGES))
    cfg = make_cfg("MODEL.FCOS.NUM_CLASSES", 3)
    resolve_num_classes(cfg, [name], explicit=True)
    cfg.MODEL.FCOS.NUM_CLASSES = 2
    with pytest.raises(ValueError, match="MODEL.FCOS.NUM_CLASSES to be 3 .*got 2"):
        resolve_num_classes(cfg, [name], explicit=True)
    assert cfg.MODEL.FCOS.NUM_CLASSES == 2
    cfg = make_cfg("MODEL.FCOS_ON", False, "MODEL.RETINANET_ON", True, "MODEL.RETINANET.NUM_CLASSES", 3)
    resolve_num_classes(cfg, [name], explicit=True)  # the number of the head that is on counts
