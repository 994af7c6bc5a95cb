"""The class `FCOS`: trained models by name, ready to detect; and the command ``fcos``."""

import json
import logging
import os

import numpy as np
import torch
from PIL import Image

from fcos.command import run
from fcos_core.config import load_config
from fcos_core.config.files import find_config
from fcos_core.data.transforms import Compose, Normalize, ToTensor
from fcos_core.engine.forward import detect as detect_batch
from fcos_core.engine.forward import evaluation_mode, move_model
from fcos_core.engine.predictor import COCO_CATEGORIES, category_names
from fcos_core.engine.restore import load_weights
from fcos_core.layers._library import check_operators
from fcos_core.modeling.detector import build_detection_model
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.image_list import to_image_list
from fcos_core.utils.preflight import check_device, resolve_device
from fcos_core.visualize import DetectionOverlay, show_picture

__all__ = ["FCOS"]

# name -> yaml file, address of the weights, and the score thresholds of the classes at which their F-measure is best
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "models.json"), encoding="utf-8") as _stream:
    _MODEL_NAMES_TO_INFO_ = json.load(_stream)

# a path or address of weights to take in place of the downloaded ones
WEIGHTS_VARIABLE = "FCOS_WEIGHTS"


class FCOS(DetectionOverlay):
    """A trained FCOS.

    Args:
        model_name (str): one of `list_available_models`.
        nms_thresh (float): IoU above which the lower-scored of two boxes of a class is dropped.
        cpu_only (bool): do not use a GPU. Without a GPU this is so anyway.
        weights (str): path or address of the weights; default: the environment variable FCOS_WEIGHTS, else the
            published ones, downloaded at first use into the model cache (see fcos_core.utils.model_zoo.cache_url).
        config_file (str): yaml file of the weights; default: that of the model.
        opts (sequence): KEY, VALUE, ... on top of it.

    Attributes:
        CATEGORIES (list[str]): class names by label, first that of the background.

    Raises:
        ValueError: an unknown model_name.
    """

    CATEGORIES = ["__background"] + list(COCO_CATEGORIES)

    def __init__(
        self, model_name="fcos_R_50_FPN_1x", nms_thresh=0.6, cpu_only=False, *, weights=None, config_file=None, opts=()
    ):
        if model_name not in _MODEL_NAMES_TO_INFO_:
            raise ValueError(
                "FCOS: expected model_name one of {}, got {!r}; or give weights and config_file with one of "
                "these".format(", ".join(_MODEL_NAMES_TO_INFO_), model_name)
            )
        logger = logging.getLogger("fcos_core.inference")
        info = _MODEL_NAMES_TO_INFO_[model_name]
        self.model_name = model_name
        cfg, _ = load_config(config_file or find_config(info["config_file"]), opts)
        cfg.MODEL.FCOS.NMS_TH = nms_thresh
        self.cfg = cfg
        self.cpu_device = torch.device("cpu")
        self.device = self.cpu_device if cpu_only else resolve_device("auto")
        check_device(self.device, logger)
        check_operators(self.device, logger)
        num_classes = cfg.MODEL.FCOS.NUM_CLASSES - 1
        self.CATEGORIES = ["__background"] + category_names(num_classes)
        self.model = build_detection_model(cfg)
        load_weights(cfg, self.model, weights or os.environ.get(WEIGHTS_VARIABLE) or info["url"])
        self.model = move_model(self.model, self.device).eval()
        self.transform = self.build_transform()
        known = len(info["thresholds"]) == num_classes
        self.confidence_thresholds_for_classes = info["thresholds"] if known else [0.5] * num_classes

    def list_available_models(self):
        """Names for model_name: list[str]."""
        return list(_MODEL_NAMES_TO_INFO_)

    def build_transform(self):
        """Function from a picture, uint8 [H,W,3] blue, green, red, to the input of the network, float32 [3,H,W]."""
        options = self.cfg.INPUT
        transforms = Compose([ToTensor(), Normalize(options.PIXEL_MEAN, options.PIXEL_STD, options.TO_BGR255)])

        def transform(im):
            picture = Image.fromarray(np.ascontiguousarray(im[:, :, ::-1]))
            return transforms(picture, BoxList([], picture.size))[0]

        return transform

    def detect(self, im, min_confidence=None):
        """Detections on a picture, which is not resized: a short side of about 800 pixels is what the models know.

        Args:
            im (uint8 [H,W,3]): blue, green, red, as OpenCV reads it.
            min_confidence (float | sequence[float]): scores must be above it; one value or one for each class; None:
                the thresholds of the model.

        Returns:
            list[dict]: box ([x1, y1, x2, y2], pixels), score, label_name and label_id (1 is the first class), best
            first.
        """
        im = np.asarray(im)
        if im.dtype != np.uint8 or im.ndim != 3 or im.shape[2] != 3:
            raise ValueError(
                "FCOS.detect: expected im uint8 [H,W,3], got {} {}; read it with cv2.imread(path)".format(
                    im.dtype, list(im.shape)
                )
            )
        batch = to_image_list([self.transform(im)], self.cfg.DATALOADER.SIZE_DIVISIBILITY)
        with evaluation_mode(self.model):
            predictions = detect_batch(self.model, batch, self.device)[0].to(self.cpu_device)
        confidence = self.confidence_thresholds_for_classes if min_confidence is None else min_confidence
        predictions = self.select_top_predictions(predictions, confidence)
        columns = predictions.bbox, predictions.get_field("scores"), predictions.get_field("labels")
        return [
            {"box": box, "score": score, "label_name": self.CATEGORIES[label], "label_id": label}
            for box, score, label in zip(*(column.tolist() for column in columns))
        ]

    def select_top_predictions(self, predictions, confidence):
        """The boxes of a BoxList whose score is above `confidence`, a number or one for each class; best first."""
        scores, labels = predictions.get_field("scores"), predictions.get_field("labels")
        limit = torch.as_tensor(confidence, dtype=scores.dtype)
        selected = predictions[scores > (limit[labels - 1] if limit.dim() else limit)]
        return selected[selected.get_field("scores").sort(descending=True)[1]]

    def show_bboxes(self, im, bbox_results):
        """`draw`, and show the picture in a window if there is a display."""
        drawn = self.draw(im, bbox_results)
        show_picture(drawn)
        return drawn

    def draw(self, im, bbox_results):
        """Draw results into a copy of a picture.

        Args:
            im (uint8 [H,W,3]): blue, green, red.
            bbox_results (list[dict]): of `detect`; may be empty.

        Returns:
            uint8 [H,W,3]
        """
        predictions = BoxList([result["box"] for result in bbox_results], (im.shape[1], im.shape[0]))
        predictions.add_field("scores", torch.tensor([float(result["score"]) for result in bbox_results]))
        predictions.add_field("labels", torch.tensor([int(result["label_id"]) for result in bbox_results]))
        return self.overlay_class_names(self.overlay_boxes(im.copy(), predictions), predictions)


if __name__ == "__main__":
    import sys

    sys.exit(run())
