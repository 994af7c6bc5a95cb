"""Testing over a data set: what is collected, what is written, and in which state the model comes back."""

import json
import logging
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fcos_core.config import cfg as default_cfg
from fcos_core.data.collate_batch import BatchCollator
from fcos_core.data.datasets.coco import COCODataset
from fcos_core.data.transforms import Compose, Normalize, Resize, ToTensor
from fcos_core.engine import inference as engine
from fcos_core.engine.forward import autocast, evaluation_mode
from fcos_core.engine.predictions import load_predictions, save_predictions
from fcos_core.structures.bounding_box import BoxList

# One bright rectangle per image: (x, y, w, h) in a picture of (width, height).
PICTURES = [
    ((160, 120), (20, 30, 60, 40)),
    ((120, 160), (40, 50, 32, 80)),
    ((200, 100), (10, 10, 100, 50)),
    ((120, 120), None),
]


def make_dataset(folder, min_size=240):
    images, annotations = [], []
    for k, (size, box) in enumerate(PICTURES):
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        if box:
            x, y, w, h = box
            pixels[y : y + h, x : x + w] = 255
            annotations.append({"id": k, "image_id": k + 5, "category_id": 2, "bbox": list(box)})
        Image.fromarray(pixels).save(str(folder / ("%d.png" % k)))
        images.append({"id": k + 5, "file_name": "%d.png" % k, "width": size[0], "height": size[1]})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "dark"}, {"id": 2, "name": "bright"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    transforms = Compose([Resize(min_size, 1000), ToTensor(), Normalize([0.0] * 3, [1.0] * 3, to_bgr255=False)])
    return COCODataset(str(folder / "instances.json"), str(folder), False, transforms)


def make_loader(dataset, batch_size=2):
    return torch.utils.data.DataLoader(dataset, batch_size=batch_size, collate_fn=BatchCollator(32))


class BrightBox(nn.Module):
    """Detects the bounding box of the bright pixels, if there are any. Training gives a loss, as in a real model."""

    def __init__(self):
        super(BrightBox, self).__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.frozen = nn.BatchNorm2d(3)
        self.seen = []

    def forward(self, images, targets=None):
        assert not self.training and not torch.is_grad_enabled()
        self.seen.append(images.tensors)
        return [self._detect(image[0, :h, :w], (w, h)) for image, (h, w) in zip(images.tensors, images.image_sizes)]

    def _detect(self, image, size):
        ys, xs = torch.nonzero(image * self.weight > 0.5, as_tuple=True)
        boxes = torch.zeros(0, 4)
        if len(xs):
            boxes = torch.stack([xs.min(), ys.min(), xs.max(), ys.max()]).float()[None]
        result = BoxList(boxes, size)
        result.add_field("scores", torch.full((len(boxes),), 0.9))
        result.add_field("labels", torch.full((len(boxes),), 2, dtype=torch.int64))
        return result


def test_finds_everything_and_writes_the_files(tmp_path, caplog):
    pytest.importorskip("pycocotools")
    dataset = make_dataset(tmp_path)
    with caplog.at_level(logging.INFO):
        results, detections = engine.inference(
            BrightBox(),
            make_loader(dataset),
            "bright",
            device="cpu",
            output_folder=str(tmp_path / "out"),
            progress=False,
        )
    assert results.results["bbox"]["AP"] > 0.95  # resizing blurs the border by a pixel
    assert len(detections["bbox"]) == 3 and {row["image_id"] for row in detections["bbox"]} == {5, 6, 7}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bbox.json",
        "coco_results.pth",
        "predictions.pth",
    ]
    assert "img / s, on 1 devices" in caplog.text and "Model inference time" in caplog.text


def test_predictions_file_round_trip_and_plain_types(tmp_path):
    dataset = make_dataset(tmp_path)
    predictions = engine.compute_on_dataset(BrightBox(), make_loader(dataset), "cpu", progress=False)
    path = str(tmp_path / "predictions.pth")
    save_predictions(path, predictions, "bright")
    loaded = load_predictions(path)
    assert sorted(loaded) == [0, 1, 2, 3]
    for index, boxlist in predictions.items():
        assert torch.equal(loaded[index].bbox, boxlist.bbox) and loaded[index].size == tuple(boxlist.size)
        assert torch.equal(loaded[index].get_field("labels"), boxlist.get_field("labels"))
        assert torch.equal(loaded[index].get_field("scores"), boxlist.get_field("scores"))
    content = torch.load(path)  # on a new torch this is weights_only
    assert content["format"] == "fcos_core predictions" and content["dataset"] == "bright"
    assert set(content["predictions"][0]) == {"index", "size", "boxes", "fields"}
    torch.save({"model": 1}, path)
    with pytest.raises(ValueError, match="expected a file written by inference"):
        load_predictions(path)


def test_modes_of_all_modules_come_back_also_after_an_error(tmp_path):
    model = BrightBox()
    model.train()
    model.frozen.eval()
    engine.compute_on_dataset(model, make_loader(make_dataset(tmp_path)), "cpu", progress=False)
    assert model.training and not model.frozen.training
    with pytest.raises(ZeroDivisionError):
        with evaluation_mode(model):
            assert not model.training
            raise ZeroDivisionError
    assert model.training and not model.frozen.training and torch.is_grad_enabled()


def test_images_without_prediction_are_counted_and_score_as_empty(tmp_path, caplog):
    pytest.importorskip("pycocotools")
    dataset = make_dataset(tmp_path)
    loader = torch.utils.data.DataLoader(
        dataset, sampler=torch.utils.data.SubsetRandomSampler([0, 3]), collate_fn=BatchCollator(0)
    )
    with caplog.at_level(logging.INFO):
        results, detections = engine.inference(BrightBox(), loader, "bright", device="cpu", progress=False)
    assert "2 of 4 images have no prediction (first index: 1)" in caplog.text
    assert len(detections["bbox"]) == 1 and 0.2 < results.results["bbox"]["AP"] < 0.5  # one of three found


def test_channels_last_and_amp_reach_the_model(tmp_path):
    dataset = make_dataset(tmp_path)
    model = BrightBox()
    engine.compute_on_dataset(model, make_loader(dataset), "cpu", channels_last=True, progress=False)
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in model.seen)
    if hasattr(torch, "autocast"):
        with autocast(torch.device("cpu"), "bfloat16"):
            assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
    else:
        with pytest.raises(RuntimeError, match="expected a torch that has bfloat16 on cpu"):
            autocast(torch.device("cpu"), "bfloat16")
    with pytest.raises(ValueError, match="got 'half'"):
        autocast(torch.device("cpu"), "half")
    with autocast(torch.device("cpu"), ""):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


def test_progress_bar_only_when_asked_for_or_on_a_terminal(tmp_path, capsys):
    pytest.importorskip("tqdm")
    loader = make_loader(make_dataset(tmp_path))
    engine.compute_on_dataset(BrightBox(), loader, "cpu")  # under pytest stderr is no terminal
    assert "test:" not in capsys.readouterr().err
    engine.compute_on_dataset(BrightBox(), loader, "cpu", progress=True)
    assert "test:" in capsys.readouterr().err


def test_run_test_uses_the_config(tmp_path):
    pytest.importorskip("pycocotools")
    cfg = default_cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    name = "some/where.json:a folder"
    cfg.DATASETS.TEST = (name,)
    results = engine.run_test(cfg, BrightBox(), [make_loader(make_dataset(tmp_path))], "cpu", progress=False)
    assert results[name][0].results["bbox"]["AP"] > 0.95
    assert (tmp_path / "run" / "inference" / "some_where.json_a_folder" / "predictions.pth").is_file()
    options = engine.inference_options(cfg)
    assert options["scorer"] == "pycocotools" and options["bbox_aug"] is None and options["amp"] == ""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file is not available")
def test_two_processes_collect_all_images_once(tmp_path):
    """Each process handles its half; one image is in both, as samplers pad; the main process has every image once."""
    script = textwrap.dedent(
        """
        import sys, torch, torch.distributed as dist
        from fcos_core.engine.inference import _accumulate_predictions_from_multiple_gpus
        from fcos_core.structures.bounding_box import BoxList
        rank, store = int(sys.argv[1]), sys.argv[2]
        dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
        own = {}
        for index in ([0, 2, 4], [1, 3, 0])[rank]:
            own[index] = BoxList(torch.full((index, 4), float(index)), (50, 40))
            own[index].add_field("scores", torch.full((index,), 0.1 * rank))
            own[index].add_field("labels", torch.ones(index, dtype=torch.int64))
        together = _accumulate_predictions_from_multiple_gpus(own)
        if rank == 0:
            assert sorted(together) == [0, 1, 2, 3, 4], sorted(together)
            assert [len(together[k]) for k in range(5)] == [0, 1, 2, 3, 4]
            assert abs(float(together[3].get_field("scores")[0]) - 0.1) < 1e-6 and together[3].size == (50, 40)
            print("collected")
        else:
            assert together is None
        dist.barrier()
        """
    )
    store = str(tmp_path / "store")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), store], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "collected" in outputs[0]
