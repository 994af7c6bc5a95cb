"""Detections on single pictures: what the demo, a notebook or a service needs.

predictor = Predictor.from_checkpoint("output/model_final.pth")
picture = cv2.imread("street.jpg")
detections = predictor(picture)                  # BoxList in pixels of the picture, best first
cv2.imwrite("found.jpg", predictor.draw(picture, detections))
"""

import logging

import numpy as np
import torch
from PIL import Image

from fcos_core.config.heads import head_section
from fcos_core.data.transforms import build_transforms
from fcos_core.layers._library import check_operators
from fcos_core.modeling.detector import build_detection_model
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.image_list import to_image_list
from fcos_core.utils.preflight import check_device, resolve_device
from fcos_core.visualize import draw_detections

from .bbox_aug import im_detect_bbox_aug, make_bbox_aug
from .forward import detect, evaluation_mode, move_model, unwrap_model
from .restore import load_weights, restore_run

__all__ = ["Predictor", "COCO_CATEGORIES", "category_names"]

COCO_CATEGORIES = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)


def category_names(num_classes, categories=None):
    """Names of the classes.

    Args:
        num_classes (int): foreground classes of the model.
        categories (sequence[str]): those that a checkpoint carries, or None.

    Returns:
        list[str]: the given ones, else those of COCO if there are 80 classes, else "class 1", "class 2", ...
    """
    if categories:
        return [str(name) for name in categories]
    if num_classes == len(COCO_CATEGORIES):
        return list(COCO_CATEGORIES)
    return ["class {}".format(label) for label in range(1, num_classes + 1)]


class Predictor(object):
    """A model with everything between a picture and its detections.

    Args:
        cfg: the configuration; INPUT, TEST, DATALOADER.SIZE_DIVISIBILITY, SOLVER.AMP, MODEL.CHANNELS_LAST and the
            NUM_CLASSES of the head are read.
        model (nn.Module): on ``device``. It may be in training: every call puts it into eval mode and back.
        device (torch.device | str)
        categories (sequence[str]): class names, label k is ``categories[k-1]``; None as in `category_names`.

    Attributes:
        categories (list[str])
        device (torch.device)
    """

    def __init__(self, cfg, model, device, categories=None):
        self.model = unwrap_model(model)
        self.device = torch.device(device)
        # cfg counts the background as a class
        self.categories = category_names(head_section(cfg).NUM_CLASSES - 1, categories)
        self._transforms = build_transforms(cfg, is_train=False)
        self._size_divisible = cfg.DATALOADER.SIZE_DIVISIBILITY
        self._bbox_aug = make_bbox_aug(cfg)
        # Mixed precision is a choice for the GPU that the model was trained on; a CPU may be slow at it or lack it.
        self._amp = cfg.SOLVER.AMP if self.device.type == "cuda" else ""
        self._channels_last = cfg.MODEL.CHANNELS_LAST

    @classmethod
    def from_checkpoint(cls, weights, config_file="", opts=(), device=None):
        """Build the model of a checkpoint.

        Args:
            weights (str): path, URL or catalog:// name.
            config_file (str): yaml; "" takes the config from the checkpoint.
            opts (sequence[str]): KEY VALUE pairs.
            device (str): "cpu", "cuda", "cuda:1" or "auto". None takes MODEL.DEVICE; a GPU that ``opts`` do not ask for
                then gives way to the CPU where there is none.

        Raises:
            as `restore_run` and `resolve_device`.
        """
        run = restore_run(config_file, opts, weights)
        name = device or run.cfg.MODEL.DEVICE
        if device is None and name.startswith("cuda") and "MODEL.DEVICE" not in list(opts)[0::2]:
            name = "auto"
        device = resolve_device(name)
        logger = logging.getLogger("fcos_core.inference")
        check_device(device, logger)
        check_operators(device, logger)
        model = build_detection_model(run.cfg)
        load_weights(run.cfg, model, run.weights)
        return cls(run.cfg, move_model(model, device, run.cfg.MODEL.CHANNELS_LAST), device, run.categories)

    def __call__(self, image):
        """Detections on one picture.

        Args:
            image (uint8 [H,W,3]): blue, green, red, as OpenCV reads it.

        Returns:
            BoxList: on the CPU, xyxy in pixels of the picture, fields ``scores`` and ``labels``, by falling score.

        Raises:
            ValueError: another type or shape.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                "Predictor: expected image uint8 [H,W,3], got {} {}; read it with cv2.imread(path)".format(
                    image.dtype, list(image.shape)
                )
            )
        # The transforms of the data pipeline, which work on RGB pictures of PIL.
        picture = Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
        with evaluation_mode(self.model):
            detections = self._detect(picture).to("cpu")
        detections = detections.resize(picture.size).convert("xyxy")
        return detections[detections.get_field("scores").sort(descending=True)[1]]

    def _detect(self, picture):
        if self._bbox_aug:
            return im_detect_bbox_aug(self.model, [picture], self.device, self._bbox_aug)[0]
        tensor = self._tensor_of(picture)
        batch = to_image_list([tensor], self._size_divisible)
        return detect(self.model, batch, self.device, self._amp, self._channels_last)[0]

    def to_input(self, image):
        """What the network sees of a picture, uint8 [H,W,3] blue, green, red: float32 [3,h,w]."""
        return self._tensor_of(Image.fromarray(np.ascontiguousarray(np.asarray(image)[:, :, ::-1])))

    def _tensor_of(self, picture):
        # The transforms change picture and boxes together; there are no boxes here.
        return self._transforms(picture, BoxList([], picture.size))[0]

    def draw(self, image, detections, min_score=0.0):
        """The picture with the detections whose score is at least ``min_score`` drawn in; see `draw_detections`."""
        scores = detections.get_field("scores")
        shown = detections[scores >= min_score]
        return draw_detections(image, shown.bbox, shown.get_field("labels"), shown.get_field("scores"), self.categories)
