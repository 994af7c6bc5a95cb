"""Multi-scale testing against a recorded run with a stand-in for the model (see tests/golden/README.md)."""
import numpy as np
import torch
from PIL import Image

from fcos_core.config import load_config
from fcos_core.engine.bbox_aug import im_detect_bbox_aug, make_bbox_aug
from fcos_core.structures.bounding_box import BoxList
from tests.golden import recipe


class RecordedModel(torch.nn.Module):
    """Gives detections that depend on how many images it has seen, and notes what it is called with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        results = []
        for height, width in images.image_sizes:
            self.seen.append(list(images.tensors.shape) + [height, width])
            k = len(self.seen)
            corners = np.random.RandomState(400 + k).uniform(0, 1, (6, 4))
            x = np.sort(corners[:, :2], axis=1) * (width - 1)
            y = np.sort(corners[:, 2:], axis=1) * (height - 1)
            boxes = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float32)
            result = BoxList(torch.from_numpy(boxes), (width, height), mode="xyxy")
            scores = np.random.RandomState(500 + k).uniform(0.1, 1, 6).astype(np.float32)
            result.add_field("scores", torch.from_numpy(scores))
            result.add_field("labels", torch.from_numpy(np.random.RandomState(600 + k).randint(1, 4, 6)))
            results.append(result)
        return results


def test_all_passes_and_their_merge():
    golden = recipe.Golden("multi_scale.npz")
    options = ["INPUT.MIN_SIZE_TEST", 60, "INPUT.MAX_SIZE_TEST", 100, "DATALOADER.SIZE_DIVISIBILITY", 32]
    options += ["TEST.BBOX_AUG.ENABLED", True, "TEST.BBOX_AUG.H_FLIP", True, "TEST.BBOX_AUG.SCALE_H_FLIP", True]
    options += ["TEST.BBOX_AUG.SCALES", (40, 80), "TEST.BBOX_AUG.MAX_SIZE", 120, "MODEL.FCOS.NMS_TH", 0.6]
    cfg, _ = load_config("", options)
    model = RecordedModel()
    images = [Image.fromarray(np.full((int(h), int(w), 3), 80, np.uint8)) for w, h in golden["images_wh"]]
    merged = im_detect_bbox_aug(model, images, torch.device("cpu"), make_bbox_aug(cfg))
    assert model.seen == golden["calls"].tolist()
    for i, found in enumerate(merged):
        assert list(found.size) == golden["final_sizes"][i].tolist()
        mine = [found.convert("xyxy").bbox.numpy()] + [found.get_field(k).numpy() for k in ("scores", "labels")]
        recorded = [golden["img{}/{}".format(i, k)] for k in ("boxes", "scores", "labels")]
        assert len(mine[1]) == len(recorded[1])
        recipe.assert_same_detections(mine, recorded, 1e-3, 1e-6)
