"""The class of the old demo scripts, which import it from the folder that they lie in."""

import torch

from fcos_core.engine.forward import move_model
from fcos_core.engine.predictor import COCO_CATEGORIES, Predictor
from fcos_core.engine.restore import load_weights
from fcos_core.modeling.detector import build_detection_model
from fcos_core.utils.preflight import resolve_device
from fcos_core.visualize import DetectionOverlay

# no limit of the long side
_UNLIMITED = 10**6


class COCODemo(DetectionOverlay):
    """A trained model of COCO's classes for single pictures.

    Args:
        cfg: MODEL.WEIGHT names the weights, MODEL.DEVICE where they go.
        confidence_thresholds_for_classes (sequence[float]): scores must be above the one of their class.
        show_mask_heatmaps, masks_per_dim: accepted; no masks are predicted.
        min_image_size (int): short side that the network sees, pixels.
    """

    CATEGORIES = ["__background"] + list(COCO_CATEGORIES)

    def __init__(
        self,
        cfg,
        confidence_thresholds_for_classes,
        show_mask_heatmaps=False,
        masks_per_dim=2,
        min_image_size=224,
    ):
        self.cfg = cfg.clone()
        self.device = resolve_device(cfg.MODEL.DEVICE)
        self.model = move_model(build_detection_model(cfg), self.device, cfg.MODEL.CHANNELS_LAST).eval()
        if cfg.MODEL.WEIGHT:
            load_weights(self.cfg, self.model, cfg.MODEL.WEIGHT)
        self.cpu_device = torch.device("cpu")
        self.min_image_size = min_image_size
        self.confidence_thresholds_for_classes = torch.as_tensor(confidence_thresholds_for_classes)
        self._predictor = self._make_predictor()
        self.transforms = self.build_transform()

    def _make_predictor(self):
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = self.min_image_size, _UNLIMITED
        return Predictor(cfg, self.model, self.device)

    def build_transform(self):
        """Function from a picture, uint8 [H,W,3] blue, green, red, to the input of the network, float32 [3,h,w]."""
        return self._predictor.to_input

    def run_on_opencv_image(self, image):
        """A copy of the picture, uint8 [H,W,3] blue, green, red, with the detections above the thresholds drawn in."""
        top = self.select_top_predictions(self.compute_prediction(image))
        return self.overlay_class_names(self.overlay_boxes(image.copy(), top), top)

    def compute_prediction(self, original_image):
        """All detections on a picture: BoxList in its pixels, fields "scores" and "labels"."""
        return self._predictor(original_image)

    def select_top_predictions(self, predictions):
        """Those whose score is above the threshold of their class, best first."""
        scores, labels = predictions.get_field("scores"), predictions.get_field("labels")
        limits = self.confidence_thresholds_for_classes.to(scores.dtype)
        selected = predictions[scores > limits[labels - 1]]
        return selected[selected.get_field("scores").sort(descending=True)[1]]
