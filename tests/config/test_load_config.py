"""Reading the configuration."""
import pytest

from fcos_core.config import cfg, load_config


def test_file_and_options_and_what_was_asked_for(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("MODEL:\n  FCOS:\n    NUM_CLASSES: 5\nSOLVER:\n  BASE_LR: 0.02\n")
    merged, explicit = load_config(str(path), ["SOLVER.BASE_LR", "0.5", "OUTPUT_DIR", "out"])
    assert merged.MODEL.FCOS.NUM_CLASSES == 5 and merged.SOLVER.BASE_LR == 0.5 and merged.OUTPUT_DIR == "out"
    assert explicit == {"MODEL.FCOS.NUM_CLASSES", "SOLVER.BASE_LR", "OUTPUT_DIR"}
    assert cfg.MODEL.FCOS.NUM_CLASSES == 81, "the defaults must not change"
    merged.SEED = 3  # not frozen


def test_unknown_keys_are_named_with_similar_ones(tmp_path):
    with pytest.raises(KeyError, match="SOLVER.BASE_LR"):
        load_config("", ["SOLVER.BASE_LRR", "1"])
    path = tmp_path / "a.yaml"
    path.write_text("MODEL:\n  FCOS:\n    NUM_CLASS: 5\n")
    with pytest.raises(KeyError, match="NUM_CLASSES"):
        load_config(str(path))


def test_missing_file_and_missing_value():
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        load_config("nowhere.yaml")
    with pytest.raises(ValueError, match="KEY VALUE"):
        load_config("", ["SEED"])


def test_old_way(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("TEST:\n  IMS_PER_BATCH: 1\n")
    mine = cfg.clone()
    mine.merge_from_file(str(path))
    mine.merge_from_list(["MODEL.WEIGHT", "x.pth"])
    mine.freeze()
    assert mine.TEST.IMS_PER_BATCH == 1 and mine.MODEL.WEIGHT == "x.pth"


def test_keys_of_models_that_are_not_carried_are_accepted():
    merged, _ = load_config("", ["MODEL.ROI_BOX_HEAD.NUM_CLASSES", "21", "MODEL.RPN.USE_FPN", "True"])
    assert merged.MODEL.ROI_BOX_HEAD.NUM_CLASSES == 21
