"""What tools/demo.py does with a predictor: find the files, detect, draw, write."""

import collections
import glob
import json
import logging
import os

import numpy as np
from PIL import Image, ImageOps

from fcos_core.utils.miscellaneous import mkdir

__all__ = ["DemoSummary", "find_inputs", "read_picture", "run_demo"]

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif")
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")

# processed: files with a result; failed: list of (file, reason); boxes: detections written
DemoSummary = collections.namedtuple("DemoSummary", ["processed", "failed", "boxes"])


class UnreadableError(RuntimeError):
    """A file that is no picture or video, or is damaged; the message says why."""


def run_demo(predictor, inputs, output_dir, min_score=0.3):
    """Detect on files and write annotated copies and ``detections.json``.

    A file that cannot be read is named in the log and does not stop the rest.

    Args:
        predictor (Predictor)
        inputs (sequence[str]): see `find_inputs`.
        output_dir (str): created if needed.
        min_score (float): lowest score that is drawn and written.

    Returns:
        DemoSummary
    """
    logger = logging.getLogger("fcos_core.inference")
    files = find_inputs(inputs)
    mkdir(output_dir)
    records, failed, processed, taken = [], [], 0, set()
    for number, path in enumerate(files, 1):
        work = _on_video if path.lower().endswith(VIDEO_ENDINGS) else _on_picture
        target = os.path.join(output_dir, _free_name(os.path.basename(path), taken))
        try:
            found = work(predictor, path, target, min_score)
        except UnreadableError as error:
            failed.append((path, str(error)))
            logger.error("%s: %s", path, error)
            continue
        records += found
        processed += 1
        logger.info("[%d/%d] %s: %d boxes", number, len(files), path, sum(len(record["boxes"]) for record in found))
    boxes = sum(len(record["boxes"]) for record in records)
    if processed:
        _write_records(os.path.join(output_dir, "detections.json"), records)
        logger.info("%d boxes in %d of %d files; results are in %s", boxes, processed, len(files), output_dir)
    if not files:
        logger.error("No picture or video found in: %s", ", ".join(inputs))
    if failed:
        logger.error("%d of %d files could not be read, see above", len(failed), len(files))
    return DemoSummary(processed, failed, boxes)


def _write_records(path, records):
    """A json list with one picture or frame per line, for people who look into it."""
    with open(path, "w", encoding="utf-8") as f:
        f.write("[\n{}\n]\n".format(",\n".join(json.dumps(record) for record in records)))


def find_inputs(inputs):
    """Files that the words of a command line mean, in their order, folders and patterns sorted by name, none twice.

    Args:
        inputs (sequence[str]): files; folders, of which pictures and videos are taken; patterns with ``*``, ``?``,
            ``[]``, where ``**`` goes through folders. A name that exists is not taken as a pattern. A file that does
            not exist is kept, so that it is reported.
    """
    found = []
    for word in inputs:
        if os.path.isdir(word):
            names = sorted(os.listdir(word))
            found += [
                os.path.join(word, name) for name in names if name.lower().endswith(PICTURE_ENDINGS + VIDEO_ENDINGS)
            ]
        elif not os.path.exists(word) and glob.has_magic(word):
            found += sorted(path for path in glob.glob(word, recursive=True) if os.path.isfile(path))
        else:
            found.append(word)
    return list(collections.OrderedDict.fromkeys(found))


def read_picture(path):
    """A picture as uint8 [H,W,3] in blue, green, red, turned upright as its camera noted it.

    Decoded by PIL, as in the data pipeline, whatever letters the path has.

    Raises:
        UnreadableError: missing, damaged, or no picture.
    """
    try:
        with Image.open(path) as image:
            rgb = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError("not a readable picture ({})".format(error)) from error
    return np.ascontiguousarray(np.asarray(rgb)[:, :, ::-1])


def _free_name(name, taken):
    """The name, numbered if another input of that name came before: a/x.jpg and b/x.jpg both have a result."""
    stem, ending = os.path.splitext(name)
    if ending.lower() == ".gif" or not ending:
        ending += ".png"  # a first frame with thousands of colours does not fit into a gif
    candidate, number = stem + ending, 1
    while candidate.lower() in taken:
        number += 1
        candidate = "{}_{}{}".format(stem, number, ending)
    taken.add(candidate.lower())
    return candidate


def _on_picture(predictor, path, target, min_score):
    image = read_picture(path)
    record, drawn = _detect(predictor, image, min_score)
    Image.fromarray(drawn[:, :, ::-1]).save(target)
    return [dict({"file": path}, **record)]


def _on_video(predictor, path, target, min_score):
    """Detect on every frame; the result is a video of the same size and speed."""
    import cv2

    if not os.path.isfile(path):
        raise UnreadableError("there is no such file")
    reader = cv2.VideoCapture(path)
    writer, records = None, []
    try:
        rate = reader.get(cv2.CAP_PROP_FPS)
        while True:
            good, frame = reader.read()
            if not good:
                break
            record, drawn = _detect(predictor, frame, min_score)
            if writer is None:
                writer = _open_video(cv2, os.path.splitext(target)[0] + ".mp4", rate, drawn)
            writer.write(drawn)
            records.append(dict({"file": path, "frame": len(records)}, **record))
    finally:
        reader.release()
        if writer is not None:
            writer.release()
    if not records:
        raise UnreadableError("not a readable video (OpenCV gets no frame out of it)")
    return records


def _open_video(cv2, target, rate, frame):
    height, width = frame.shape[:2]
    # Some containers state no rate; 25 is a guess that plays.
    writer = cv2.VideoWriter(target, cv2.VideoWriter_fourcc(*"mp4v"), rate if rate > 0 else 25.0, (width, height))
    if not writer.isOpened():
        raise RuntimeError(
            "run_demo: expected OpenCV to be able to write {}, but it cannot; use another --output".format(target)
        )
    return writer


def _detect(predictor, image, min_score):
    detections = predictor(image)
    detections = detections[detections.get_field("scores") >= min_score]
    labels = detections.get_field("labels").tolist()
    names = predictor.categories
    record = {
        "width": image.shape[1],
        "height": image.shape[0],
        "boxes": [[round(side, 2) for side in box] for box in detections.bbox.tolist()],
        "scores": [round(score, 4) for score in detections.get_field("scores").tolist()],
        "labels": labels,
        "names": [names[label - 1] if label <= len(names) else "class {}".format(label) for label in labels],
    }
    return record, predictor.draw(image, detections)
