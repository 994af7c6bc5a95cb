"""Pictures of the built-in data set: coloured shapes on cluttered, textured ground.

A picture is a pure function of its seed.  Arrays only see operations that IEEE 754 rounds exactly
(+ - * / sqrt, comparisons, floor; all in float64, because numpy 2 changed which scalars widen a float32 array) and
numbers of numpy's frozen `RandomState` stream, so that every numpy and every CPU draws the same pixels; sines and
cosines are scalar.

Legend: H, W picture size; h, w size of the window an object is drawn in; s object size in pixels.
"""
import math

import numpy as np

CLASSES = ("circle", "square", "triangle", "star", "cross")

SIZES = ((320, 240), (240, 320), (320, 192), (288, 288), (256, 320), (320, 256), (304, 208))  # (width, height)
EMPTY_PROBABILITY = 0.06
MAX_OBJECTS = 8
# (share, smallest, largest): object sizes in pixels, uniform in the logarithm within a band
SIZE_BANDS = ((0.12, 8.0, 20.0), (0.48, 20.0, 60.0), (0.40, 60.0, 140.0))
MIN_VISIBLE = 0.45   # part of an object that neither the border nor other objects may hide
MIN_SIDE = 6         # pixels: a visible box is never thinner
# Colour (R, G, B) that most objects of a class are near to, as blood cells or road signs are; the others have any.
TYPICAL_COLOURS = ((215, 55, 55), (60, 90, 220), (225, 205, 60), (205, 75, 205), (60, 185, 80))
TYPICAL_SHARE = 0.85
COLOUR_SPREAD = 40   # per channel
MIN_CONTRAST = 110   # sum over R, G, B of the difference between an object and what lies behind it
PLACING_TRIES = 6


def render(seed):
    """Draws one picture.

    Args:
        seed (int): picture number, 0 <= seed < 2**32.

    Returns:
        tuple: uint8 array [H, W, 3] (RGB), and a list of dicts with `label` (1..5, index into CLASSES plus one),
        `bbox` [x, y, width, height] around the visible pixels, and `area` (number of visible pixels).
    """
    rng = np.random.RandomState(seed)  # noqa: NPY002 (the stream of Generator may change)
    width, height = SIZES[rng.randint(len(SIZES))]
    canvas = _background(rng, height, width)
    for _ in range(rng.randint(2, 9)):
        (_draw_line if rng.rand() < 0.6 else _draw_smudge)(rng, canvas)
    objects = _draw_objects(rng, canvas)
    canvas += _grain(rng, height, width)
    pixels = np.clip(np.floor(canvas + 0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)), objects


# ---------------------------------------------------------------- ground and clutter


def _background(rng, height, width):
    """A ground [3, H, W]: smooth field, gradient, stripes or checks, in two related colours."""
    first = rng.uniform(50, 205, 3)
    second = np.clip(first + rng.uniform(-55, 55, 3), 15, 240)
    kind = rng.randint(4)
    if kind == 0:
        mix = _smooth_field(rng, height, width, rng.randint(30, 110))
    else:
        y, x = _pixel_grid(0, 0, height, width)
        mix = _pattern(rng, ("gradient", "stripes", "checks")[kind - 1], x, y, max(height, width))
        mix = 0.7 * mix + 0.3 * _smooth_field(rng, height, width, 60)
    return _blend_colours(mix, first, second)


def _smooth_field(rng, height, width, cell):
    """Random values on a coarse grid, interpolated bilinearly to [H, W] in 0..1."""
    coarse = rng.rand(height // cell + 2, width // cell + 2)
    rows, cols = np.arange(height) / float(cell), np.arange(width) / float(cell)
    y0, x0 = np.floor(rows).astype(np.int64), np.floor(cols).astype(np.int64)
    fy, fx = (rows - y0)[:, None], (cols - x0)[None, :]
    top = coarse[y0][:, x0] * (1 - fx) + coarse[y0][:, x0 + 1] * fx
    bottom = coarse[y0 + 1][:, x0] * (1 - fx) + coarse[y0 + 1][:, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


def _pattern(rng, kind, x, y, extent):
    """A texture in 0..1 over the pixel coordinates x, y; `extent` (pixels) scales its period."""
    angle = rng.uniform(0, 2 * math.pi)
    along = math.cos(angle) * x + math.sin(angle) * y
    if kind == "gradient":
        low, high = along.min(), along.max()
        return (along - low) / max(high - low, 1.0)
    period = max(rng.uniform(0.05, 0.2) * extent, 5.0)
    wave = _triangle_wave(along / period)
    if kind == "stripes":
        return wave
    across = math.cos(angle) * y - math.sin(angle) * x
    return np.where((wave > 0.5) == (_triangle_wave(across / period) > 0.5), 0.15, 0.85)


def _triangle_wave(t):
    return np.abs(2 * (t - np.floor(t)) - 1)


def _blend_colours(mix, first, second):
    """[h, w] weights in 0..1 -> [3, h, w] between the colours first (0) and second (1)."""
    return first[:, None, None] + (second - first)[:, None, None] * mix


def _draw_line(rng, canvas):
    """A straight stroke across part of the picture: clutter without a class."""
    height, width = canvas.shape[1:]
    x1, x2 = rng.uniform(0, width, 2)
    y1, y2 = rng.uniform(0, height, 2)
    half, colour, opacity = rng.uniform(0.5, 2.0), rng.uniform(0, 255, 3), rng.uniform(0.4, 0.9)
    window = _window(min(x1, x2) - 3, min(y1, y2) - 3, max(x1, x2) + 3, max(y1, y2) + 3, height, width)
    y, x = _pixel_grid(*window)
    dx, dy = x2 - x1, y2 - y1
    t = np.clip(((x - x1) * dx + (y - y1) * dy) / max(dx * dx + dy * dy, 1.0), 0, 1)
    distance = np.sqrt((x - x1 - t * dx) ** 2 + (y - y1 - t * dy) ** 2)
    _paint(canvas, window, opacity * np.clip(half + 0.5 - distance, 0, 1), colour[:, None, None])


def _draw_smudge(rng, canvas):
    """A soft spot without an edge: clutter without a class."""
    height, width = canvas.shape[1:]
    x0, y0, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(10, 60)
    colour, opacity = rng.uniform(0, 255, 3), rng.uniform(0.2, 0.5)
    window = _window(x0 - radius, y0 - radius, x0 + radius, y0 + radius, height, width)
    y, x = _pixel_grid(*window)
    fall = np.clip(1 - ((x - x0) ** 2 + (y - y0) ** 2) / (radius * radius), 0, 1)
    _paint(canvas, window, opacity * fall * fall, colour[:, None, None])


def _grain(rng, height, width):
    """Sensor-like noise in steps of two grey values (so that the PNG stays small), fine or in 2 x 2 blocks."""
    amplitude = rng.randint(0, 6)
    block = rng.randint(1, 3)
    shape = ((height + block - 1) // block, (width + block - 1) // block)
    noise = 2 * rng.randint(-amplitude, amplitude + 1, shape)
    noise = np.repeat(np.repeat(noise, block, 0), block, 1)[:height, :width]
    return noise


# ---------------------------------------------------------------- objects


def _draw_objects(rng, canvas):
    """Paints the objects back to front and returns their annotations, boxes around what stayed visible.

    An object is only placed where it keeps MIN_VISIBLE of itself and leaves as much of every object below it, so
    that no painted object lacks an annotation.
    """
    height, width = canvas.shape[1:]
    owner = np.full((height, width), -1, np.int64)      # [H, W] index of the object seen at a pixel
    labels, full = [], []                               # per object: class, number of pixels if nothing hid it
    count = 0 if rng.rand() < EMPTY_PROBABILITY else rng.randint(1, MAX_OBJECTS + 1)
    for _ in range(count):
        label, size, stretch = rng.randint(len(CLASSES)), _object_size(rng), rng.uniform(0.8, 1.25)
        for _ in range(PLACING_TRIES):
            placed = _place(rng, CLASSES[label], size, stretch, owner, full)
            if placed is not None:
                window, alpha, pixels = placed
                _fill(rng, canvas, window, alpha, size, label)
                top, left, h, w = window
                owner[top:top + h, left:left + w][alpha >= 0.5] = len(labels)
                labels.append(label)
                full.append(pixels)
                break
    return [_annotation(owner == k, label) for k, label in enumerate(labels)]


def _object_size(rng):
    draw, band = rng.rand(), 0
    while band < len(SIZE_BANDS) - 1 and draw >= SIZE_BANDS[band][0]:
        draw -= SIZE_BANDS[band][0]
        band += 1
    _, low, high = SIZE_BANDS[band]
    return low * math.exp(rng.rand() * math.log(high / low))


def _place(rng, name, size, stretch, owner, full):
    """One try: (window, alpha [h, w], full pixel count), or None where too much would be hidden."""
    height, width = owner.shape
    x0 = rng.uniform(-0.2 * size, width + 0.2 * size)
    y0 = rng.uniform(-0.2 * size, height + 0.2 * size)
    angle = rng.uniform(0, 2 * math.pi)
    reach = int(0.8 * size) + 3
    left, top = int(math.floor(x0)) - reach, int(math.floor(y0)) - reach
    y, x = _pixel_grid(top, left, 2 * reach + 1, 2 * reach + 1)
    alpha = np.clip(0.5 - _signed_distance(name, x - x0, y - y0, size, stretch, angle), 0, 1)
    pixels = int((alpha >= 0.5).sum())
    window = _window(left, top, left + 2 * reach, top + 2 * reach, height, width)
    if window[2] <= 0 or window[3] <= 0:
        return None
    alpha = alpha[window[0] - top:, window[1] - left:][:window[2], :window[3]]
    mask = alpha >= 0.5
    below = owner[window[0]:window[0] + window[2], window[1]:window[1] + window[3]]
    if mask.sum() < MIN_VISIBLE * pixels or min(_extent(mask)) < MIN_SIDE:
        return None
    for k in np.unique(below[mask]):
        if k >= 0:
            left_over = owner == k
            left_over[window[0]:window[0] + window[2], window[1]:window[1] + window[3]] &= ~mask
            if left_over.sum() < MIN_VISIBLE * full[k] or min(_extent(left_over)) < MIN_SIDE:
                return None
    return window, alpha, pixels


def _signed_distance(name, x, y, size, stretch, angle):
    """Distance in pixels to the outline of a shape around (0, 0), negative inside; exact near the outline only."""
    c, s = math.cos(angle), math.sin(angle)
    u = (c * x + s * y) / (0.5 * size * stretch)
    v = (c * y - s * x) / (0.5 * size / stretch)
    if name == "circle":
        d = np.sqrt(u * u + v * v) - 0.98
    elif name == "square":
        d = np.maximum(np.abs(u), np.abs(v)) - 0.8
    elif name == "triangle":
        d = _half_planes(u, v, 3)[0] - 0.55
    elif name == "star":
        # A pentagram: the points that lie beyond at most one of the five lines that its sides are part of.
        d = _half_planes(u, v, 5)[1] - 1.2 * math.cos(0.4 * math.pi)
    else:
        a, b = np.abs(u), np.abs(v)
        arm, half = 1.0, 0.3
        d = np.minimum(np.maximum(a - arm, b - half), np.maximum(a - half, b - arm))
    return d * (0.5 * size)


def _half_planes(u, v, sides):
    """Largest and second largest coordinate of every point along the normals of the sides of a regular polygon."""
    first = second = np.full(np.broadcast(u, v).shape, -np.inf)
    for k in range(sides):
        angle = 2 * math.pi * k / sides
        along = math.cos(angle) * u + math.sin(angle) * v
        second = np.maximum(second, np.minimum(first, along))
        first = np.maximum(first, along)
    return first, second


def _fill(rng, canvas, window, alpha, size, label):
    """Paints an object in a texture of two colours that stand out from what is behind it."""
    top, left, h, w = window
    behind = canvas[:, top:top + h, left:left + w][:, alpha >= 0.5]
    # Integers, because the order in which floats are summed differs between versions of numpy.
    mean = np.floor(behind).astype(np.int64).sum(1) / float(behind.shape[1])
    first = _contrasting_colour(rng, mean, TYPICAL_COLOURS[label] if rng.rand() < TYPICAL_SHARE else None)
    second = np.clip(first + rng.uniform(-60, 60, 3), 0, 255)
    kind = ("flat", "gradient", "stripes", "checks")[rng.randint(4)]
    y, x = _pixel_grid(*window)
    mix = np.zeros((h, w)) if kind == "flat" else _pattern(rng, kind, x, y, 2 * size)
    _paint(canvas, window, alpha, _blend_colours(0.8 * mix, first, second))


def _contrasting_colour(rng, mean, typical):
    """The first of up to 20 random colours that is MIN_CONTRAST away from `mean`, else the farthest of them.

    The colours are any, or near `typical` if there is one.
    """
    best, best_distance = None, -1.0
    for _ in range(20):
        colour = rng.uniform(0, 255, 3)
        if typical is not None:
            colour = np.clip(np.array(typical) + (colour / 127.5 - 1) * COLOUR_SPREAD, 0, 255)
        distance = float(np.abs(colour - mean).sum())
        if distance > best_distance:
            best, best_distance = colour, distance
        if distance >= MIN_CONTRAST:
            break
    return best


def _annotation(mask, label):
    ys, xs = np.nonzero(mask)
    x, y = int(xs.min()), int(ys.min())
    return {"label": label + 1, "area": len(xs),
            "bbox": [x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1]}


# ---------------------------------------------------------------- windows


def _window(x1, y1, x2, y2, height, width):
    """(top, left, h, w) of the pixels from (x1, y1) to (x2, y2), both included, that lie in the picture."""
    left, top = max(int(math.floor(x1)), 0), max(int(math.floor(y1)), 0)
    right, bottom = min(int(math.ceil(x2)), width - 1), min(int(math.ceil(y2)), height - 1)
    return top, left, bottom - top + 1, right - left + 1


def _pixel_grid(top, left, h, w):
    """Pixel coordinates (float64): y [h, 1], x [1, w]."""
    return (np.arange(top, top + h, dtype=np.float64)[:, None],
            np.arange(left, left + w, dtype=np.float64)[None, :])


def _paint(canvas, window, alpha, colour):
    """Mixes a colour [3, 1, 1] or [3, h, w] into a window of the canvas [3, H, W], with weights alpha [h, w]."""
    top, left, h, w = window
    part = canvas[:, top:top + h, left:left + w]
    part += alpha * (colour - part)


def _extent(mask):
    """Number of rows and of columns between the first and the last set pixel, both included; (0, 0) if none is."""
    rows, cols = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    if len(rows) == 0:
        return 0, 0
    return int(rows[-1] - rows[0]) + 1, int(cols[-1] - cols[0]) + 1
