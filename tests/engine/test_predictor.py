"""Single pictures: pixels as in the data pipeline, the frame of the picture, names, and where weights come from."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fcos_core.config import cfg as default_cfg
from fcos_core.data.transforms import build_transforms
from fcos_core.engine.predictor import COCO_CATEGORIES, Predictor, category_names
from fcos_core.engine.restore import restore_run
from fcos_core.modeling.detector import build_detection_model
from fcos_core.structures.bounding_box import BoxList

TINY = [
    "MODEL.DEVICE",
    "cpu",
    "MODEL.BACKBONE.CONV_BODY",
    "R-50-FPN-RETINANET",
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS",
    "64",
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP",
    "4",
    "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "8",
    "MODEL.RETINANET.USE_C5",
    "False",
    "MODEL.FCOS.NUM_CONVS",
    "1",
    "MODEL.FCOS.INFERENCE_TH",
    "0.001",
    "INPUT.MIN_SIZE_TEST",
    "96",
    "INPUT.MAX_SIZE_TEST",
    "200",
    "DATALOADER.SIZE_DIVISIBILITY",
    "32",
]


def tiny_cfg(num_classes=3):
    cfg = default_cfg.clone()
    cfg.merge_from_list(TINY)
    cfg.MODEL.FCOS.NUM_CLASSES = num_classes
    return cfg


def save_checkpoint(path, cfg, **extra):
    model = build_detection_model(cfg)
    torch.save(dict({"model": model.state_dict()}, **extra), str(path))
    return model


class Recorder(nn.Module):
    """Keeps the batch that it is given, and finds two boxes."""

    def forward(self, images):
        self.images = images
        h, w = images.image_sizes[0]
        result = BoxList(torch.tensor([[0.0, 0, w / 4.0, h / 4.0], [w / 2.0, h / 2.0, w - 1.0, h - 1.0]]), (w, h))
        result.add_field("scores", torch.tensor([0.3, 0.8]))
        result.add_field("labels", torch.tensor([1, 2]))
        return [result]


def random_picture(height=150, width=100):
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


def test_the_network_sees_what_the_data_pipeline_makes():
    cfg, image = tiny_cfg(), random_picture()
    model = Recorder()
    Predictor(cfg, model, "cpu")(image)
    rgb = Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
    expected, _ = build_transforms(cfg, is_train=False)(rgb, BoxList([], rgb.size))
    assert model.images.image_sizes == [(144, 96)] and model.images.tensors.shape[2:] == (160, 96)
    assert torch.equal(model.images.tensors[0, :, :144, :96], expected)


def test_boxes_come_back_in_the_picture_best_first():
    model = Recorder()
    found = Predictor(tiny_cfg(), model, "cpu", ["cat", "dog"])(random_picture())
    assert found.size == (100, 150) and found.mode == "xyxy"
    assert found.get_field("scores").tolist() == pytest.approx([0.8, 0.3]) and found.get_field("labels").tolist() == [
        2,
        1,
    ]
    assert found.bbox[1].tolist() == pytest.approx([0, 0, 25, 37.5], abs=0.3)


def test_training_model_stays_in_training_and_pictures_are_drawn():
    model = Recorder()
    model.train()
    predictor, image = Predictor(tiny_cfg(), model, "cpu"), random_picture()
    found = predictor(image)
    assert model.training
    drawn = predictor.draw(image, found, min_score=0.5)
    assert drawn.shape == image.shape and not np.array_equal(drawn, image)
    assert np.array_equal(drawn[:30, :20], image[:30, :20])  # the box of score 0.3 is left out
    assert np.array_equal(predictor.draw(image, found, min_score=0.9), image)


def test_wrong_pictures_are_refused():
    predictor = Predictor(tiny_cfg(), Recorder(), "cpu")
    with pytest.raises(ValueError, match=r"expected image uint8 \[H,W,3\], got float64 \[8, 8, 3\]"):
        predictor(np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match=r"got uint8 \[8, 8\]"):
        predictor(np.zeros((8, 8), np.uint8))


def test_names_of_classes():
    assert len(COCO_CATEGORIES) == 80 == len(set(COCO_CATEGORIES))
    assert category_names(80)[0] == "person" and category_names(80)[79] == "toothbrush"
    assert category_names(2, ["cat", "dog"]) == ["cat", "dog"]
    assert category_names(2) == ["class 1", "class 2"]


def test_from_a_checkpoint_that_carries_its_config(tmp_path):
    cfg = tiny_cfg()
    path = tmp_path / "model_final.pth"
    model = save_checkpoint(path, cfg, config=cfg.dump(), categories=["cat", "dog"])
    predictor = Predictor.from_checkpoint(str(path))
    assert predictor.categories == ["cat", "dog"] and predictor.device.type == "cpu"
    for name, tensor in model.state_dict().items():
        assert torch.equal(predictor.model.state_dict()[name], tensor), name
    same = Predictor(cfg, model, "cpu")(random_picture())
    found = predictor(random_picture())
    assert len(found) > 0 and torch.equal(found.bbox, same.bbox)
    assert torch.equal(found.get_field("scores"), same.get_field("scores"))


def test_multi_scale_pictures(tmp_path):
    cfg = tiny_cfg()
    path = tmp_path / "model_final.pth"
    save_checkpoint(path, cfg, config=cfg.dump())
    opts = ["TEST.BBOX_AUG.ENABLED", "True", "TEST.BBOX_AUG.H_FLIP", "True", "TEST.DETECTIONS_PER_IMG", "7"]
    found = Predictor.from_checkpoint(str(path), opts=opts)(random_picture())
    assert 0 < len(found) <= 7 and found.size == (100, 150)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_config_for_a_gpu_falls_back_to_the_cpu_unless_asked_for(tmp_path):
    cfg = tiny_cfg()
    cfg.MODEL.DEVICE = "cuda"
    path = tmp_path / "model_final.pth"
    save_checkpoint(path, cfg, config=cfg.dump())
    assert Predictor.from_checkpoint(str(path)).device.type == "cpu"
    with pytest.raises(RuntimeError, match="expected a GPU"):
        Predictor.from_checkpoint(str(path), opts=["MODEL.DEVICE", "cuda"])


class TestRestoreRun(object):
    """Which weights, config and class names are taken."""

    def test_class_names_set_the_number_of_classes(self, tmp_path):
        path = tmp_path / "weights.pth"
        torch.save({"model": {}, "categories": ["a", "b", "c", "d"]}, str(path))
        yaml = tmp_path / "some.yaml"
        yaml.write_text("MODEL:\n  WEIGHT: catalog://ImageNetPretrained/MSRA/R-50\n")
        run = restore_run(str(yaml), [], str(path))
        assert run.cfg.MODEL.FCOS.NUM_CLASSES == 5 and run.categories == ["a", "b", "c", "d"]
        run = restore_run(str(yaml), ["MODEL.FCOS.NUM_CLASSES", "9"], str(path))
        assert run.cfg.MODEL.FCOS.NUM_CLASSES == 9

    def test_last_checkpoint_of_the_output_folder_beats_the_weights_of_the_file_but_not_those_of_the_command(
        self, tmp_path
    ):
        last, named = tmp_path / "model_0000010.pth", tmp_path / "named.pth"
        for path in (last, named):
            torch.save({"model": {}, "config": tiny_cfg().dump()}, str(path))
        (tmp_path / "last_checkpoint").write_text(str(last))
        yaml = tmp_path / "some.yaml"
        yaml.write_text("MODEL:\n  WEIGHT: {}\n".format(named))
        folder = ["OUTPUT_DIR", str(tmp_path)]
        assert restore_run("", folder).weights == str(last)
        assert restore_run(str(yaml), folder).weights == str(last)
        assert restore_run("", folder + ["MODEL.WEIGHT", str(named)]).weights == str(named)
        assert restore_run(str(yaml), ["OUTPUT_DIR", str(tmp_path / "other")]).weights == str(named)

    def test_options_beat_the_config_of_the_checkpoint(self, tmp_path):
        path = tmp_path / "weights.pth"
        torch.save({"model": {}, "config": tiny_cfg().dump()}, str(path))
        run = restore_run("", ["INPUT.MIN_SIZE_TEST", "64"], str(path))
        assert run.cfg.INPUT.MIN_SIZE_TEST == 64 and run.cfg.MODEL.FCOS.NUM_CONVS == 1
        assert run.explicit == {"INPUT.MIN_SIZE_TEST"}

    def test_without_trained_weights_or_config_it_says_what_to_do(self, tmp_path):
        yaml = tmp_path / "some.yaml"
        yaml.write_text("MODEL:\n  WEIGHT: catalog://ImageNetPretrained/MSRA/R-50\n")
        with pytest.raises(ValueError, match="expected trained weights, got the ImageNet weights"):
            restore_run(str(yaml), ["OUTPUT_DIR", str(tmp_path)])
        with pytest.raises(ValueError, match="expected trained weights, got no MODEL.WEIGHT"):
            restore_run("", ["OUTPUT_DIR", str(tmp_path)])
        bare = tmp_path / "bare.pth"
        torch.save({"model": {}}, str(bare))
        with pytest.raises(ValueError, match="pass --config-file"):
            restore_run("", [], str(bare))
        with pytest.raises(FileNotFoundError, match="nowhere.pth"):
            restore_run("", [], str(tmp_path / "nowhere.pth"))


def test_loading_reports_what_fits(tmp_path, caplog):
    cfg = tiny_cfg()
    path = tmp_path / "model_final.pth"
    save_checkpoint(path, cfg, config=cfg.dump())
    with caplog.at_level(logging.INFO):
        Predictor.from_checkpoint(str(path))
    assert "model_final.pth" in caplog.text and "loaded" in caplog.text
