"""`atss_core`: another name of the same modules, with its own configuration."""
import glob
import importlib
import logging
import os
import pickle
import pkgutil
import subprocess
import sys

import pytest
import torch

import atss_core
import fcos_core
from atss_core.config import cfg, load_config
from fcos_core.config import cfg as fcos_cfg
from fcos_core.config import load_config as fcos_load_config
from fcos_core.config.heads import chosen_head
from fcos_core.modeling.rpn.rpn import build_rpn
from fcos_core.utils.checkpoint import find_weights

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OWN = ("config", "config.defaults", "config.paths_catalog")


def module_names():
    """Names below the package of all modules that can be imported."""
    refuse = ("modeling.roi_heads", "modeling.backbone.fbnet")
    for found in pkgutil.walk_packages(fcos_core.__path__, "fcos_core.", onerror=lambda name: None):
        name = found.name[len("fcos_core.") :]
        if not name.startswith(refuse) and not name.startswith("_ext") and not name.endswith("__main__"):
            yield name


def test_every_module_is_the_same_object():
    names = sorted(module_names())
    assert len(names) > 100
    for name in names:
        real, alias = importlib.import_module("fcos_core." + name), importlib.import_module("atss_core." + name)
        assert (real is alias) == (name not in OWN), name
        assert real.__spec__.name == real.__name__ == "fcos_core." + name


def run(code):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")]))
    return subprocess.check_output([sys.executable, "-c", code], env=environment, universal_newlines=True).strip()


def test_functions_named_like_their_module_stay():
    """`layers.nms` is a function; importing the module of that name by the alias must not take its place."""
    code = """
import atss_core.layers.nms
from atss_core.layers.roi_align import ROIAlign
import fcos_core.layers as layers
print(sorted(name for name in layers.__all__ if type(getattr(layers, name)).__name__ == "module"))
"""
    assert run(code) == "[]"


def test_the_alias_may_come_first():
    """In a fresh process, by all forms of the import statement."""
    code = """
import sys
import atss_core, atss_core.config
print(sorted({"torch", "numpy", "cv2"} & set(sys.modules)))
from atss_core.structures.bounding_box import BoxList as first
import atss_core.structures.bounding_box as alias
from atss_core import layers
from atss_core import _C
import fcos_core, fcos_core.structures.bounding_box as real
print(alias is real, first is real.BoxList, layers.nms is sys.modules["fcos_core.layers"].nms)
print(atss_core._C is _C, _C is sys.modules["fcos_core._C"], atss_core.structures is fcos_core.structures)
"""
    assert run(code).split("\n") == ["[]", "True True True", "True True True"]


def test_pickles_and_reloads():
    from atss_core.structures.image_list import ImageList

    images = pickle.loads(pickle.dumps(ImageList(torch.zeros(1, 3, 2, 2), [(2, 2)])))
    assert type(images) is ImageList
    # as a file of the old package names the class
    alias = pickle.dumps(ImageList, 0).replace(b"fcos_core.structures", b"atss_core.structures")
    assert b"atss_core" in alias and pickle.loads(alias) is ImageList

    finders = len(sys.meta_path)
    assert importlib.reload(atss_core) is atss_core and len(sys.meta_path) == finders
    module = importlib.import_module("atss_core.utils.timer")
    assert importlib.reload(module) is module is sys.modules["fcos_core.utils.timer"] is sys.modules[
        "atss_core.utils.timer"
    ]


@pytest.mark.parametrize("name", ["atss_core.nothing", "atss_core.modeling.nothing"])
def test_a_module_that_does_not_exist(name):
    with pytest.raises(ModuleNotFoundError, match=name):
        importlib.import_module(name)
    assert importlib.util.find_spec("atss_core_else") is None
    with pytest.raises(AttributeError, match="'atss_core' has no attribute 'nowhere'"):
        atss_core.nowhere  # noqa: B018


def test_a_module_that_is_not_carried_says_so():
    with pytest.raises(ImportError, match="two-stage detectors .* are not carried"):
        importlib.import_module("atss_core.modeling.roi_heads.box_head.loss")


def test_modules_run_as_programs():
    assert "usage" in subprocess.check_output(
        [sys.executable, "-m", "atss_core.doctor", "--help"], cwd=ROOT, universal_newlines=True
    )


def test_defaults_of_the_configuration():
    def leaves(node, prefix=""):
        for key, value in node.items():
            if isinstance(value, dict):
                for leaf in leaves(value, prefix + key + "."):
                    yield leaf
            else:
                yield prefix + key, value

    mine, theirs = dict(leaves(cfg)), dict(leaves(fcos_cfg))
    assert set(mine) == set(theirs)
    differing = {key: (theirs[key], mine[key]) for key in mine if mine[key] != theirs[key]}
    assert set(differing) == {"MODEL.FCOS_ON", "MODEL.ANCHOR_SHIFT", "PATHS_CATALOG"}
    assert differing["MODEL.FCOS_ON"] == (True, False) and differing["MODEL.ANCHOR_SHIFT"] == (-1.0, 0.5)


def test_the_two_configurations_do_not_touch():
    code = """
from fcos_core.config import cfg
cfg.MODEL.FCOS.NUM_CLASSES = 3
cfg.freeze()
from atss_core.config import cfg as other
print(other.MODEL.FCOS.NUM_CLASSES, other.is_frozen())
other.MODEL.ATSS.TOPK = 5
print(cfg.MODEL.ATSS.TOPK)
"""
    assert run(code).split("\n") == ["81 False", "9"]


@pytest.mark.parametrize("head,size", [("ATSS", 64), ("RETINANET", 32)])
def test_anchors_are_shifted_by_half_a_pixel_for_every_head(head, size):
    options = ["MODEL.{}_ON".format(head), True]
    for load, shift in ((load_config, 0.5), (fcos_load_config, 0.5 if head == "ATSS" else 0.0)):
        cell = next(iter(build_rpn(load("", options)[0], 32).anchor_generator.cell_anchors))
        assert (cell[0, 0] + cell[0, 2]).item() / 2 == 3.5 + shift
    assert cfg.MODEL[head].ANCHOR_SIZES[0] == size


def test_a_file_must_name_its_head():
    with pytest.raises(ValueError, match="expected one of .* to be True, got none"):
        build_rpn(load_config()[0], 32)
    path = os.path.join(ROOT, "configs", "fcos", "fcos_R_50_FPN_1x.yaml")
    assert load_config(path)[0].MODEL.FCOS_ON
    assert not load_config(os.path.join(ROOT, "configs", "atss", "atss_R_50_FPN_1x.yaml"))[0].MODEL.FCOS_ON


def test_every_file_asks_for_the_same_head_under_both_names():
    """Also by the old way of reading it, which does not know what was asked for."""
    files = sorted(glob.glob(os.path.join(ROOT, "configs", "*", "*.yaml")))
    assert len(files) > 30
    for path in files:
        wanted = chosen_head(fcos_load_config(path)[0])
        for tree in (cfg, fcos_cfg):
            tree = tree.clone()
            tree.merge_from_file(path)
            assert chosen_head(tree) == wanted, path


def test_catalog():
    from atss_core.config.paths_catalog import DatasetCatalog, ModelCatalog
    from fcos_core.config import paths_catalog as real

    name, others = "ImageNetPretrained/FAIR/20171220/X-101-64x4d", "ImageNetPretrained/MSRA/R-50"
    assert ModelCatalog.get(name).endswith("/ImageNetPretrained/FBResNeXt/X-101-64x4d.pkl")
    assert real.ModelCatalog.get(name).endswith("/ImageNetPretrained/20171220/X-101-64x4d.pkl")
    assert ModelCatalog.get(others) == real.ModelCatalog.get(others)
    assert DatasetCatalog is real.DatasetCatalog


def test_weights_are_looked_up_in_the_catalog_of_the_config(monkeypatch, tmp_path):
    asked = []

    def cache(url):
        asked.append(url)
        (tmp_path / "w.pkl").write_bytes(b"")
        return str(tmp_path / "w.pkl")

    monkeypatch.setattr("fcos_core.utils.checkpoint.cache_url", cache)
    name = "ImageNetPretrained/FAIR/20171220/X-101-64x4d"
    find_weights(cfg, "catalog://" + name)
    assert "FBResNeXt" in asked[0]
    own = importlib.import_module("fcos_core.config.paths_catalog")
    assert "X-101-64x4d" in own.ModelCatalog.get(name) and "FBResNeXt" not in own.ModelCatalog.get(name)


@pytest.mark.parametrize("name", ["fcos_core", "atss_core"])
def test_one_log_for_both_names(name, tmp_path, capsys):
    from fcos_core.utils.logger import setup_logger

    for _ in range(2):  # a second time, nothing appears twice
        logger = setup_logger(name, str(tmp_path), 0)
    assert logger.name == name
    logging.getLogger("fcos_core.trainer").info("of the package")
    logging.getLogger("atss_core.trainer").info("of the script")
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert text.count("of the package") == text.count("of the script") == 1
    setup_logger(name, str(tmp_path), 1)
    logging.getLogger("fcos_core").error("of another process")
    assert "another" not in capsys.readouterr().out
