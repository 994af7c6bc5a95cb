"""The COCO scoring program behind one function: pycocotools, or a faster package with the same interface.

Ground truth and detections are handed over as plain dicts of the COCO json format and made into the program's own
objects here, so that an empty list of detections, annotations numbered from 0, or annotations without ``area`` or
``iscrowd`` are no special cases elsewhere.
"""

import contextlib
import importlib
import io
import logging

__all__ = ["SCORERS", "load_scorer", "score_boxes"]

# name in TEST.SCORER -> (module of COCO, module of COCOeval, its name there, how to install it)
SCORERS = {
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval", "COCOeval", "pip install pycocotools"),
    "faster_coco_eval": ("faster_coco_eval", "faster_coco_eval", "COCOeval_faster", "pip install faster-coco-eval"),
}


def load_scorer(name="pycocotools"):
    """The classes (COCO, COCOeval) of a scoring package.

    Raises:
        ValueError: an unknown name.
        ImportError: the package is not installed; the message says how to install it.
    """
    if name not in SCORERS:
        raise ValueError("TEST.SCORER: expected one of {}, got '{}'".format(", ".join(sorted(SCORERS)), name))
    coco_module, eval_module, eval_name, command = SCORERS[name]
    try:
        return importlib.import_module(coco_module).COCO, getattr(importlib.import_module(eval_module), eval_name)
    except ImportError as error:
        raise ImportError(
            "COCO scoring needs {}, which is not installed here ({}): {}".format(name, error, command)
        ) from error


def score_boxes(groundtruth, detections, scorer="pycocotools", title="bbox"):
    """Evaluate box detections.

    Args:
        groundtruth (dict): ``images``, ``categories`` and ``annotations`` of the COCO format (boxes xywh in pixels).
            It is not changed.
        detections (list[dict]): ``image_id``, ``category_id``, ``bbox`` (xywh) and ``score`` each.
        scorer (str): a key of `SCORERS`.
        title (str): first words of the log line.

    Returns:
        the evaluated COCOeval: ``stats`` [12], ``eval["precision"]`` [T,R,K,A,M], ``params``.
    """
    coco_class, eval_class = load_scorer(scorer)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # the package prints; the log file is to have it, with a time
        coco_eval = eval_class(
            _make_coco(coco_class, groundtruth, _complete_groundtruth(groundtruth)),
            _make_coco(coco_class, groundtruth, _complete_detections(detections)),
            "bbox",
        )
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    summary = [line for line in printed.getvalue().splitlines() if "Average" in line]
    logging.getLogger("fcos_core.inference").info("%s, scored by %s:\n%s", title, scorer, "\n".join(summary))
    return coco_eval


def _make_coco(coco_class, groundtruth, annotations):
    coco = coco_class()
    coco.dataset = {
        "info": groundtruth.get("info", {}),
        "images": groundtruth["images"],
        "categories": groundtruth["categories"],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _complete_groundtruth(groundtruth):
    categories = {category["id"] for category in groundtruth["categories"]}
    complete = []
    for annotation in groundtruth["annotations"]:
        box = annotation.get("bbox")
        if box is None or len(box) != 4 or annotation.get("category_id") not in categories:
            continue  # the data set has warned about these and left them out as well
        complete.append(
            {
                # Numbered anew from 1: the scorer marks an unmatched detection by id 0.
                "id": len(complete) + 1,
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": list(box),
                # COCO's own area is that of the mask and decides between small, medium and large.
                "area": annotation.get("area", box[2] * box[3]),
                "iscrowd": annotation.get("iscrowd", 0),
            }
        )
    return complete


def _complete_detections(detections):
    return [
        dict(detection, id=number, area=detection["bbox"][2] * detection["bbox"][3], iscrowd=0)
        for number, detection in enumerate(detections, 1)
    ]
