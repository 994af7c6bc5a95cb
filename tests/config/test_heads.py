"""Which dense head a configuration asks for."""
import sys
import types

import pytest

from fcos_core.config import cfg as defaults
from fcos_core.config import load_config
from fcos_core.config.heads import HEADS, chosen_head, head_section
from fcos_core.modeling.rpn.atss.atss import ATSSModule
from fcos_core.modeling.rpn.fcos.fcos import FCOSModule
from fcos_core.modeling.rpn.gfl.gfl import GFLModule
from fcos_core.modeling.rpn.retinanet.retinanet import RetinaNetModule
from fcos_core.modeling.rpn.rpn import build_rpn
from fcos_core.modeling.rpn.tood.tood import TOODModule

MODULES = {"ATSS": ATSSModule, "FCOS": FCOSModule, "GFL": GFLModule, "RETINANET": RetinaNetModule, "TOOD": TOODModule}


@pytest.mark.parametrize("head", HEADS)
def test_one_switch_is_enough(head, tmp_path):
    """Old yaml files leave FCOS_ON at its default."""
    path = tmp_path / "a.yaml"
    path.write_text("MODEL:\n  {}_ON: True\n".format(head))
    for cfg in (load_config(str(path))[0], load_config("", ["MODEL.{}_ON".format(head), "True"])[0]):
        assert chosen_head(cfg) == head and head_section(cfg) is cfg.MODEL[head]
        assert [h for h in HEADS if cfg.MODEL[h + "_ON"]] == [head]
        assert type(build_rpn(cfg, 32)) is MODULES[head]


@pytest.mark.parametrize("head", HEADS)
def test_a_head_has_the_keys_that_the_rest_of_the_package_reads(head):
    section = defaults.MODEL[head]
    assert section.NUM_CLASSES == 81 and section.PRE_NMS_TOP_N == 1000
    assert 0 < section.INFERENCE_TH < 1 and 0 < section.NMS_TH < 1


def test_one_line_registers_a_head(monkeypatch):
    """A head of somebody else's: its switch and section in the config, and the line (docs/new_head.md)."""
    module = types.ModuleType("a_module_of_ours")
    module.build_ours = lambda cfg, in_channels: ("ours", cfg.MODEL.OURS.TOPK, in_channels)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(HEADS, "OURS", "a_module_of_ours:build_ours")
    monkeypatch.setitem(defaults.MODEL, "OURS_ON", False)
    monkeypatch.setitem(defaults.MODEL, "OURS", defaults.MODEL.ATSS.clone())
    assert chosen_head(load_config()[0]) == "FCOS"
    cfg, _ = load_config("", ["MODEL.OURS_ON", True, "MODEL.OURS.TOPK", 5])
    assert chosen_head(cfg) == "OURS" and head_section(cfg) is cfg.MODEL.OURS and not cfg.MODEL.FCOS_ON
    assert build_rpn(cfg, 32) == ("ours", 5, 32)


def test_without_any_switch_it_is_fcos():
    assert chosen_head(defaults) == "FCOS" and type(build_rpn(load_config()[0], 32)) is FCOSModule


@pytest.mark.parametrize("head", HEADS)
def test_the_old_way_of_merging(head):
    """cfg.merge_from_file knows nothing of what was asked for: FCOS_ON True is taken for the default."""
    cfg = defaults.clone()
    cfg.merge_from_list(["MODEL.{}_ON".format(head), True])
    assert type(build_rpn(cfg, 32)) is MODULES[head]


def test_a_later_option_overrules_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("MODEL:\n  FCOS_ON: True\n")
    for options in ([], ["MODEL.FCOS_ON", "False"]):
        cfg, explicit = load_config(str(path), ["MODEL.ATSS_ON", "True"] + options)
        assert chosen_head(cfg) == "ATSS" and not cfg.MODEL.FCOS_ON
        assert explicit == {"MODEL.FCOS_ON", "MODEL.ATSS_ON"}
    path.write_text("MODEL:\n  ATSS_ON: True\n")
    assert chosen_head(load_config(str(path), ["MODEL.FCOS_ON", "True"])[0]) == "FCOS"


@pytest.mark.parametrize("heads", [("FCOS", "ATSS"), ("FCOS", "RETINANET"), ("ATSS", "RETINANET"), HEADS])
def test_several_that_were_asked_for_are_an_error(heads, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("MODEL:\n" + "".join("  {}_ON: True\n".format(head) for head in heads))
    with pytest.raises(ValueError, match="expected one dense head, got .* set .* to False"):
        load_config(str(path))
    options = [word for head in heads for word in ("MODEL.{}_ON".format(head), True)]
    with pytest.raises(ValueError, match="expected one dense head, got .* set .* to False") as error:
        load_config("", options)
    assert all("MODEL.{}_ON True".format(head) in str(error.value) for head in heads)


def test_none_and_too_many_without_load_config():
    cfg = defaults.clone()
    cfg.merge_from_list(["MODEL.ATSS_ON", True, "MODEL.RETINANET_ON", True])
    with pytest.raises(ValueError, match="expected one dense head"):
        chosen_head(cfg)
    with pytest.raises(ValueError, match="MODEL.FCOS_ON to be True, got none"):
        build_rpn(load_config("", ["MODEL.FCOS_ON", False])[0], 32)
