"""Small data sets on disk."""
import json

import pytest

from fcos_core.config import cfg as defaults

from .samples import picture


@pytest.fixture
def make_coco(tmp_path):
    """Function that writes images and a json file and returns the paths of both.

    Images are (id, width, height) or (id, width, height, file_name); annotations are dicts, whose `id` is filled in.
    """

    def make(images, annotations=(), categories=((1, "cat"), (2, "dog")), name="a", keep=None):
        folder = tmp_path / (name + "_images")
        folder.mkdir()
        entries = []
        for image in images:
            file_name = image[3] if len(image) > 3 else "{:03d}.png".format(image[0])
            picture(image[1], image[2], image[0]).save(str(folder / file_name))
            entries.append({"id": image[0], "width": image[1], "height": image[2], "file_name": file_name})
        data = {"images": entries, "annotations": [dict(a, id=k + 1) for k, a in enumerate(annotations)],
                "categories": [{"id": i, "name": n} for i, n in categories]}
        if keep is not None:
            data = {key: data[key] for key in keep}
        path = tmp_path / (name + ".json")
        path.write_text(json.dumps(data), encoding="utf-8")
        return str(path), str(folder)

    return make


_OBJECT = ("<object><name>{}</name>{}<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
           "</object>")


@pytest.fixture
def make_voc(tmp_path):
    """Function that writes a VOC folder and returns its path.

    Images are name -> (width, height, objects); an object is (class, xmin, ymin, xmax, ymax[, difficult]).
    """

    def make(images, splits=None, name="voc", ending=".jpg", with_xml=True, with_size=True):
        root = tmp_path / name
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / part).mkdir(parents=True)
        for k, (image, (width, height, objects)) in enumerate(sorted(images.items())):
            picture(width, height, k).save(str(root / "JPEGImages" / (image + ending)))
            if with_xml:
                size = "<size><width>{}</width><height>{}</height></size>".format(*(
                    (width, height) if with_size else (0, 0)))
                things = "".join(_OBJECT.format(
                    o[0], "<difficult>{}</difficult>".format(o[5]) if len(o) > 5 else "", *o[1:5]) for o in objects)
                (root / "Annotations" / (image + ".xml")).write_text(
                    "<annotation>{}{}</annotation>".format(size, things), encoding="utf-8")
        for split, names in (splits or {"train": sorted(images)}).items():
            (root / "ImageSets" / "Main" / (split + ".txt")).write_text("\n".join(names) + "\n", encoding="utf-8")
        return str(root)

    return make


@pytest.fixture
def make_cfg():
    """Function that gives a config for small pictures, read in this process."""

    def make(*options):
        cfg = defaults.clone()
        cfg.merge_from_list([
            "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "TEST.IMS_PER_BATCH", 2,
            "INPUT.MIN_SIZE_TRAIN", (24, 32, 40), "INPUT.MAX_SIZE_TRAIN", 80, "INPUT.MIN_SIZE_TEST", 32,
            "INPUT.MAX_SIZE_TEST", 80, "DATALOADER.SIZE_DIVISIBILITY", 16] + list(options))
        return cfg

    return make
