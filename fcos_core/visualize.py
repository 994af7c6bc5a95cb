"""Draw detections into a picture: boxes, class names and scores.

The only module that draws on images; it needs OpenCV (``pip install opencv-python-headless``) and nothing from torch,
so it takes NumPy arrays, tensors on the CPU and lists alike.
"""

import colorsys
import os
import sys
import unicodedata

import numpy as np

__all__ = ["DetectionOverlay", "draw_detections", "has_display", "label_colour", "label_text", "show_picture"]

# Successive hues one golden section apart never come close to each other, however many classes there are.
_GOLDEN_SECTION = 0.6180339887498949
# (saturation, value) per class in turn: neighbours in hue that come late in the sequence differ in brightness too.
_TONES = ((1.0, 1.0), (0.55, 1.0), (1.0, 0.7), (0.8, 0.85))


def _opencv():
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "draw_detections: expected OpenCV to be installed, got '{}'; pip install opencv-python-headless".format(
                error
            )
        ) from error
    return cv2


def label_colour(label):
    """The colour of a class: always the same one for the same label.

    Args:
        label (int): class number, 1 for the first class.

    Returns:
        tuple[int, int, int]: blue, green, red, each 0..255.
    """
    label = int(label)
    saturation, value = _TONES[label % len(_TONES)]
    red, green, blue = colorsys.hsv_to_rgb((label * _GOLDEN_SECTION) % 1.0, saturation, value)
    return tuple(int(round(255 * channel)) for channel in (blue, green, red))


def label_text(label, score=None, categories=None):
    """What is written beside a box: ``name 0.87``, or ``class 3 0.87`` where no name is known.

    OpenCV draws ASCII only: accents are dropped, and a name with no ASCII letter left is written as its number.
    """
    label = int(label)
    name = str(categories[label - 1]) if categories and 1 <= label <= len(categories) else ""
    name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii").strip()
    name = name or "class {}".format(label)
    return name if score is None else "{} {:.2f}".format(name, float(score))


def has_display():
    """Whether there is a display that a window could open on."""
    if sys.platform in ("win32", "cygwin", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def show_picture(image, title="detections"):
    """Show a picture, uint8 [H,W,3], in a window until a key is pressed.

    Returns:
        bool: False if there is no display, or if this OpenCV has no windows. (Without a display OpenCV would not raise
        an error but end the process.)
    """
    cv2 = _opencv()
    if not has_display():
        return False
    try:
        cv2.imshow(title, image)
        cv2.waitKey(0)
        cv2.destroyAllWindows()
    except cv2.error:  # opencv-python-headless
        return False
    return True


class DetectionOverlay(object):
    """What the demo classes of the predecessors draw; `draw_detections` draws more legibly.

    Attributes:
        CATEGORIES (list[str]): names by label; subclasses say them, that of the background first.
    """

    CATEGORIES = ["__background"]
    _PALETTE = (2**25 - 1, 2**15 - 1, 2**21 - 1)

    def compute_colors_for_labels(self, labels):
        """Colour of each label [M]: uint8 [M,3], the label times three large numbers, modulo 255."""
        labels = np.asarray(labels, dtype=np.int64).reshape(-1, 1)
        return (labels * np.array(self._PALETTE, dtype=np.int64) % 255).astype(np.uint8)

    def overlay_boxes(self, image, predictions):
        """Draw the boxes of a BoxList with field "labels" into a picture, uint8 [H,W,3], and return it."""
        colours = self.compute_colors_for_labels(predictions.get_field("labels")).tolist()
        for box, colour in zip(predictions.bbox.tolist(), colours):
            x1, y1, x2, y2 = (int(side) for side in box)
            _opencv().rectangle(image, (x1, y1), (x2, y2), tuple(colour), 2)
        return image

    def overlay_class_names(self, image, predictions):
        """Write name and score of the boxes of a BoxList into a picture, uint8 [H,W,3], and return it."""
        cv2 = _opencv()
        rows = zip(predictions.bbox.tolist(), predictions.get_field("scores").tolist(),
                   predictions.get_field("labels").tolist())  # fmt: skip
        for (x, y, _, _), score, label in rows:
            text = label_text(label, score, self.CATEGORIES[1:])
            cv2.putText(image, text, (int(x), int(y)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
        return image


def draw_detections(image, boxes, labels, scores=None, categories=None):
    """Draw boxes with their class and score into a copy of a picture.

    Line width and letters follow the size of the picture. A label stands above its box, or inside or below it where
    that would leave the picture or cover another label; better scores are drawn on top.

    Args:
        image (uint8 [H,W,3]): blue, green, red.
        boxes ([M,4]): x1 y1 x2 y2 in pixels of the image.
        labels ([M]): class numbers, 1 for the first class.
        scores ([M]): written behind the name; None writes the name alone (for ground truth).
        categories (list[str]): class names, label k is ``categories[k-1]``; None writes numbers.

    Returns:
        uint8 [H,W,3]: a new array.

    Raises:
        ValueError: the image is not uint8 [H,W,3], or the number of boxes, labels and scores differ.
        ImportError: OpenCV is missing.
    """
    cv2 = _opencv()
    canvas, boxes, labels, scores = _check(image, boxes, labels, scores)
    height, width = canvas.shape[:2]
    thickness = max(1, int(round((height + width) / 800.0)))
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")

    for i in order:
        x1, y1, x2, y2 = _clip(boxes[i], width, height)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), label_colour(labels[i]), thickness)

    # All labels after all boxes, so that no line runs through a text; the best one chooses its place first.
    placed = []
    for i in order[::-1]:
        text = label_text(labels[i], None if scores is None else scores[i], categories)
        placed.append((_place(cv2, text, boxes[i], width, height, thickness, placed), text, labels[i]))
    for place, text, label in placed[::-1]:
        _write(cv2, canvas, place, text, label_colour(label))
    return canvas


def _check(image, boxes, labels, scores):
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            "draw_detections: expected image uint8 [H,W,3], got {} {}; convert grey images with cv2.cvtColor".format(
                image.dtype, list(image.shape)
            )
        )
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    labels = np.asarray(labels).reshape(-1).astype(np.int64)
    if scores is not None:
        scores = np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(labels) != len(boxes) or (scores is not None and len(scores) != len(boxes)):
        raise ValueError(
            "draw_detections: expected as many labels and scores as boxes, got {} boxes, {} labels, {} scores; "
            "pass arrays of equal length".format(len(boxes), len(labels), "no" if scores is None else len(scores))
        )
    finite = np.isfinite(boxes).all(axis=1)  # a box with a NaN or an infinite side cannot be drawn
    return (
        np.ascontiguousarray(image).copy(),
        boxes[finite],
        labels[finite],
        None if scores is None else scores[finite],
    )


def _clip(box, width, height):
    """Integer corners inside the picture."""
    limits = (width - 1, height - 1, width - 1, height - 1)
    return [int(round(min(max(value, 0), limit))) for value, limit in zip(box, limits)]


class _Place(object):
    """Where a label goes: its filled rectangle, the left end of its base line, and the letters."""

    def __init__(self, left, top, width, height, baseline, scale, weight):
        self.left, self.top, self.right, self.bottom = left, top, left + width, top + height
        self.origin = (left + 1, top + height - baseline)
        self.scale, self.weight = scale, weight

    def overlaps(self, other):
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def _place(cv2, text, box, width, height, thickness, taken):
    """The first place near the box that is inside the picture and free; the first inside the picture if none is."""
    scale, weight = max(0.35, 0.25 + 0.15 * thickness), max(1, thickness // 2)
    (text_width, text_height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
    if text_width + 2 > width:  # a long name in a narrow picture: smaller letters
        scale, weight = scale * (width - 2) / text_width, 1
        (text_width, text_height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
    label_width, label_height = text_width + 2, text_height + baseline + 2
    x1, y1, x2, y2 = _clip(box, width, height)
    candidates = [
        (x1, y1 - label_height),  # above the box
        (x1, y1),  # inside, at its top
        (x1, y2),  # below
        (x1, y2 - label_height),  # inside, at its bottom
        (x2 - label_width, y1 - label_height),  # above, at the right end
        (x2 - label_width, y2),  # below, at the right end
    ]
    places = []
    for left, top in candidates:
        inside = 0 <= top <= height - label_height
        left = max(0, min(left, width - label_width))
        top = max(0, min(top, height - label_height))
        place = _Place(left, top, label_width, label_height, baseline, scale, weight)
        places.append((inside, place))
    for inside, place in places:
        if inside and not any(place.overlaps(other) for other, _, _ in taken):
            return place
    return next((place for inside, place in places if inside), places[0][1])


def _write(cv2, canvas, place, text, colour):
    cv2.rectangle(canvas, (place.left, place.top), (place.right - 1, place.bottom - 1), colour, -1)
    blue, green, red = colour
    # Rec. 601 luma: black letters on light colours, white ones on dark colours.
    letters = (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 130 else (255, 255, 255)
    cv2.putText(canvas, text, place.origin, cv2.FONT_HERSHEY_SIMPLEX, place.scale, letters, place.weight, cv2.LINE_AA)
