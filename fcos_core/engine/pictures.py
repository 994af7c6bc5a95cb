"""Pictures of what a trained model finds, so that a look tells more than a number."""

import logging
import os

import numpy as np

from fcos_core.data.datasets.detection import read_image
from fcos_core.engine.predictions import load_predictions
from fcos_core.visualize import draw_detections


def draw_predictions(dataset, predictions_file, output_dir, count=4, threshold=0.4):
    """Draw the detections of some images of a data set, spread evenly over it.

    Args:
        dataset: has `image_path(i)` and `categories`.
        predictions_file (str): `predictions.pth` of a test on this data set.
        output_dir (str): receives `detections_<image number>.jpg`.
        count (int): number of pictures.
        threshold (float): detections with a lower score are not drawn.

    Returns:
        list[str]: the files that were written; empty, with a line in the log, without OpenCV.
    """
    logger = logging.getLogger("fcos_core.inference")
    try:
        import cv2
    except ImportError as error:
        logger.info(f"Detections are not drawn, the import of OpenCV failed: {error} (pip install opencv-python)")
        return []
    predictions = load_predictions(predictions_file)
    indices = sorted(predictions)
    chosen = [indices[i] for i in np.unique(np.linspace(0, len(indices) - 1, count).astype(int))] if indices else []
    written = []
    for index in chosen:
        image = np.ascontiguousarray(np.asarray(read_image(dataset.image_path(index)))[:, :, ::-1])  # to blue-green-red
        found = predictions[index].resize((image.shape[1], image.shape[0])).convert("xyxy")
        kept = found[found.get_field("scores") >= threshold]
        picture = draw_detections(
            image, kept.bbox, kept.get_field("labels"), kept.get_field("scores"), list(dataset.categories)
        )
        path = os.path.join(output_dir, f"detections_{index:06d}.jpg")
        cv2.imwrite(path, picture)
        written.append(path)
    logger.info(f"Detections with a score of at least {threshold} are drawn in {', '.join(written) or 'no picture'}")
    return written
