"""The cases of tables.py: sizes of detectors that train on images of 800 x 1216 pixels, 16 or 2 at a time on a GPU.

Contenders are those of the bench_*.py beside this file where these have the same call.
"""

import importlib
import math

import torch
import torchvision
from torch.nn import functional as F

from benchmarks import bench_group_norm_relu, bench_iou_loss, bench_sigmoid_focal_loss
from fcos_core.layers import batched_nms, deform_conv, modulated_deform_conv, nms, roi_align, roi_pool
from fcos_core.layers.iou_loss import giou_loss
from tests.reference.nms import random_boxes

LOCATIONS = 20267  # of an 800 x 1216 image on five levels
GAMMA, ALPHA = bench_sigmoid_focal_loss.GAMMA, bench_sigmoid_focal_loss.ALPHA


class Case:
    """One row.

    Args:
        name (str): what is computed.
        inputs: function(device, seed) -> arguments of the contenders.
        contenders: {name: function(*inputs) -> tensor that is compared}, ours first.
        bytes (int): that any implementation must move.
        flops (float): products that it must do.
        products (str): "float32", "tf32", "float16" or "bfloat16", what they are done in.
        exact: function(*inputs) -> the result in float64, or None.
        input_bytes (int): of one set of inputs.
    """

    def __init__(self, name, inputs, contenders, bytes, flops=0, products=None, exact=None, input_bytes=None):
        self.name, self.inputs, self.contenders, self.exact = name, inputs, contenders, exact
        self.bytes, self.flops, self.products = bytes, flops, products
        self.input_bytes = bytes if input_bytes is None else input_bytes


def mmcv(name):
    """An operator of mmcv, or None."""
    try:
        return getattr(importlib.import_module("mmcv.ops"), name)
    except Exception:
        return None


def word(dtype):
    return str(dtype).split(".")[1]


def normal(device, seed, *shape):
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def allow_tf32(allow):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow


def product(numbers):
    return torch.Size(numbers).numel()


def leaf(tensor):
    return tensor.detach().requires_grad_()


# ---- losses ---------------------------------------------------------------------------------------


def focal_formula(logits, targets):
    # of rows of classes from 1 on, 0 is the background
    right = targets[:, None] == torch.arange(1, logits.shape[1] + 1, device=logits.device)
    x = logits if logits.dtype == torch.float64 else logits.float()
    z = torch.where(right, -x, x)
    return (torch.where(right, ALPHA, 1 - ALPHA) * torch.sigmoid(z) ** GAMMA * F.softplus(z)).sum()


def gradient_of(function):
    return lambda x, *rest: torch.autograd.grad(function(x, *rest), x)[0]


def focal_cases(on_gpu, with_compile):
    theirs = mmcv("sigmoid_focal_loss")
    sizes = (16 * LOCATIONS, 20000) if on_gpu else (LOCATIONS,)
    for rows in sizes:
        for dtype in (torch.float32, torch.bfloat16, torch.float16) if on_gpu else (torch.float32,):

            def inputs(device, seed, rows=rows, dtype=dtype):
                logits = (normal(device, seed, rows, 80) * 1.2 - 4).to(dtype).requires_grad_()
                generator = torch.Generator().manual_seed(seed)
                targets = torch.randint(1, 81, (rows,), generator=generator)
                return logits, targets.masked_fill(torch.rand(rows, generator=generator) > 0.01, 0).to(device)

            contenders = {"fcos_core": bench_sigmoid_focal_loss.ours, "torchvision": bench_sigmoid_focal_loss.peer}
            if theirs is not None:
                # classes count from 0 there, and the background is the last
                contenders["mmcv"] = lambda x, t: torch.autograd.grad(
                    theirs(x, (t - 1) % 81, GAMMA, ALPHA, None, "sum"), x
                )[0]
            if with_compile and hasattr(torch, "compile"):
                contenders["torch.compile"] = gradient_of(torch.compile(focal_formula, dynamic=False))
            size = torch.empty((), dtype=dtype).element_size()
            yield Case(
                "{} x 80 {}, both".format(rows, word(dtype)),
                inputs,
                contenders,
                2 * rows * 80 * size + 8 * rows,
                exact=lambda x, t: gradient_of(focal_formula)(leaf(x.double()), t),
                input_bytes=rows * 80 * size,
            )


def iou_cases(on_gpu, with_compile):
    for boxes in (3000, 20000, 16 * LOCATIONS) if on_gpu else (3000, 20000):

        def inputs(device, seed, boxes=boxes):
            pred, target, weight = bench_iou_loss.random_inputs(boxes, "box_giou", seed)
            return pred.to(device).requires_grad_(), target.to(device), weight.to(device)

        contenders = {"fcos_core": bench_iou_loss.ours, "torchvision": bench_iou_loss.peer}
        yield Case(
            "{} boxes, both".format(boxes),
            inputs,
            contenders,
            52 * boxes,
            exact=lambda p, t, w: gradient_of(lambda *a: giou_loss(*a, "sum"))(
                leaf(p.double()), t.double(), w.double()
            ),
        )


# ---- NMS ------------------------------------------------------------------------------------------


def nms_cases(on_gpu, with_compile):
    theirs = mmcv("nms")
    for count in (1000, 5000, 10000, 50000) if on_gpu else (1000, 5000):

        def inputs(device, seed, count=count):
            return tuple(t.to(device) for t in random_boxes(count, clusters=count // 12, seed=seed)[:2])

        contenders = {
            "fcos_core": lambda b, s: nms(b, s, 0.6),
            "torchvision": lambda b, s: torchvision.ops.nms(b, s, 0.6),
        }
        if theirs is not None:
            contenders["mmcv"] = lambda b, s: theirs(b, s, 0.6)[1]
        yield Case("{} boxes".format(count), inputs, contenders, 28 * count)


def batched_nms_cases(on_gpu, with_compile):
    images, count = (16, 1000) if on_gpu else (2, 1000)

    def inputs(device, seed):
        lists = [random_boxes(count, num_labels=80, seed=100 * seed + i) for i in range(images)]
        return tuple(torch.stack(parts).to(device) for parts in zip(*lists))

    def one_call(boxes, scores, labels):
        unique = labels + 80 * torch.arange(images, device=labels.device)[:, None]
        return torchvision.ops.batched_nms(boxes.flatten(0, 1), scores.flatten(), unique.flatten(), 0.6)

    contenders = {"fcos_core": lambda b, s, t: batched_nms(b, s, t, 0.6), "torchvision": one_call}
    yield Case("{} images x {} boxes, 80 classes".format(images, count), inputs, contenders, 29 * images * count)


# ---- pooling of rois --------------------------------------------------------------------------------


def level_rois(per_image, images, sides, seed):
    """Rois [K, 5] as a level of a pyramid gets them: the root of the area log-uniform in `sides` pixels."""
    generator = torch.Generator().manual_seed(seed)
    count = images * per_image
    side = torch.exp(torch.rand(count, generator=generator) * math.log(sides[1] / sides[0])) * sides[0]
    aspect = torch.exp(0.17 * torch.randn(count, generator=generator))
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([1216.0, 800.0])
    half = torch.stack([side * aspect, side / aspect], 1) / 2
    low, high = (centre - half).clamp(min=0), torch.min(centre + half, torch.tensor([1216.0, 800.0]))
    image = torch.arange(images).repeat_interleave(per_image).float()
    return torch.cat([image[:, None], low, torch.max(high, low + 1)], 1)


def roi_sizes(on_gpu):
    if on_gpu:
        return ((2, 500, 4, (20, 160)), (16, 512, 8, (64, 320)))
    return ((2, 256, 8, (64, 320)),)


def roi_cases(on_gpu, functions, extra_bytes, numbers):
    """Rows of roi_align or roi_pool; functions: {contender: function(x, rois, scale, number)}."""
    layouts = {"": torch.contiguous_format, " nhwc": torch.channels_last}
    dtypes = (torch.float32, torch.float16, torch.bfloat16) if on_gpu else (torch.float32,)
    rows = [
        (s, d, n, b, x) for s in roi_sizes(on_gpu) for d in dtypes for n in layouts for x in numbers for b in (0, 1)
    ]
    for (images, per_image, stride, sides), dtype, layout, backward, number in rows:
        shape = (images, 256, 800 // stride, 1216 // stride)
        pooled = (images * per_image, 256, 7, 7)

        def inputs(device, seed, shape=shape, dtype=dtype, layout=layout, arguments=(per_image, images, sides),
                   pooled=pooled):  # fmt: skip
            x = normal(device, seed, *shape).to(dtype).contiguous(memory_format=layouts[layout]).requires_grad_()
            grad = normal(device, 7, *pooled).to(dtype).contiguous(memory_format=layouts[layout])
            return x, level_rois(*arguments, seed=seed).to(device), grad

        def one(function, backward=backward, scale=1 / stride, number=number):
            def call(x, rois, grad):
                if not backward:
                    with torch.no_grad():
                        return function(x, rois, scale, number)
                return torch.autograd.grad(function(x, rois, scale, number), x, grad)[0]

            return call

        size = torch.empty((), dtype=dtype).element_size()
        map_bytes, pooled_bytes = product(shape) * size, product(pooled) * size
        moved = map_bytes + pooled_bytes + extra_bytes * product(pooled)
        exact = one(functions["fcos_core"])
        yield Case(
            "{} {} rois{} {}{}, {}".format(
                list(shape), pooled[0], "" if number is None else ", sampling {}".format(number), word(dtype), layout,
                "both" if backward else "forward",
            ),
            inputs,
            {name: one(function) for name, function in functions.items()},
            moved * (1 + backward),
            exact=lambda x, r, g, f=exact: f(leaf(x.double()), r.double(), g.double()),
            input_bytes=map_bytes,
        )  # fmt: skip


def roi_align_cases(on_gpu, with_compile):
    functions = {
        "fcos_core": lambda x, r, s, n: roi_align(x, r, 7, s, n),
        "torchvision": lambda x, r, s, n: torchvision.ops.roi_align(x, r.to(x.dtype), 7, s, n),
    }
    theirs = mmcv("roi_align")
    if theirs is not None:
        functions["mmcv"] = lambda x, r, s, n: theirs(x, r.to(x.dtype), (7, 7), s, n, "avg", False)
    return roi_cases(on_gpu, functions, 0, (2, 0))


def roi_pool_cases(on_gpu, with_compile):
    functions = {
        "fcos_core": lambda x, r, s, n: roi_pool(x, r, 7, s),
        "torchvision": lambda x, r, s, n: torchvision.ops.roi_pool(x, r.to(x.dtype), 7, s),
    }
    theirs = mmcv("roi_pool")
    if theirs is not None:
        functions["mmcv"] = lambda x, r, s, n: theirs(x, r.to(x.dtype), (7, 7), s)
    return roi_cases(on_gpu, functions, 4, (None,))


# ---- deformable convolution -------------------------------------------------------------------------


def deform_functions(version):
    masked = version == 2
    ours = modulated_deform_conv if masked else deform_conv
    functions = {
        "fcos_core": lambda x, o, m, w: ours(x, o, m, w, None, 1, 1) if masked else ours(x, o, w, 1, 1),
        "torchvision": lambda x, o, m, w: torchvision.ops.deform_conv2d(
            x, o, w, None, 1, 1, mask=m if masked else None
        ),
        "plain convolution": lambda x, o, m, w: F.conv2d(x, w, None, 1, 1),
    }
    theirs = mmcv("modulated_deform_conv2d")
    if masked and theirs is not None:
        functions["mmcv"] = lambda x, o, m, w: theirs(x, o, m, w, None, 1, 1, 1, 1, 1)
    return functions


def deform_cases(on_gpu, with_compile):
    sizes = ((2, 100, 152), (16, 50, 76)) if on_gpu else ((1, 50, 76),)
    modes = ("float32", "tf32", "float16", "bfloat16") if on_gpu else ("float32",)
    rows = [(s, m, v, n, b) for s in sizes for m in modes for v in (1, 2) for n in (False, True) for b in (0, 1)]
    for (images, height, width), mode, version, nhwc, backward in rows:
        dtype = torch.float32 if mode == "tf32" else getattr(torch, mode)

        def inputs(device, seed, images=images, size=(height, width), dtype=dtype, nhwc=nhwc, mode=mode):
            allow_tf32(mode == "tf32")
            layout = torch.channels_last if nhwc else torch.contiguous_format
            tensors = (
                normal(device, seed, images, 256, *size),
                2 * normal(device, seed + 40, images, 18, *size),
                torch.sigmoid(normal(device, seed + 50, images, 9, *size)),
                0.03 * normal(device, 60, 256, 256, 3, 3),
                normal(device, 70, images, 256, *size),
            )
            tensors = [t.to(dtype).contiguous(memory_format=layout) for t in tensors]
            return tuple(t.requires_grad_(i < 4) for i, t in enumerate(tensors))

        def one(function, backward=backward, version=version):
            def call(x, offset, mask, weight, grad):
                if not backward:
                    with torch.no_grad():
                        return function(x, offset, mask, weight)
                leaves = (x, offset, mask, weight) if version == 2 else (x, offset, weight)
                return torch.autograd.grad(function(x, offset, mask, weight), leaves, grad, allow_unused=True)[0]

            return call

        size = torch.empty((), dtype=dtype).element_size()
        positions = images * height * width
        moved = positions * (256 + 18 + 9 * (version - 1)) * size + 9 * 256 * 256 * size
        functions = deform_functions(version)
        if mode == "bfloat16":
            del functions["torchvision"]  # has none
        exact = one(functions["fcos_core"])
        yield Case(
            "v{} [{}, 256, {}, {}] {}{}, {}".format(
                version, images, height, width, mode, " nhwc" if nhwc else "", "both" if backward else "forward"
            ),
            inputs,
            {name: one(function) for name, function in functions.items()},
            (moved + positions * 256 * size) * (1 + backward) + backward * moved,
            flops=(1 + 2 * backward) * 2 * positions * 256 * 256 * 9,
            products=mode,
            exact=lambda *t, f=exact: f(*(leaf(s.double()) for s in t)),
            input_bytes=moved,
        )


# ---- normalisation ----------------------------------------------------------------------------------


def norm_cases(on_gpu, with_compile):
    # on a CPU the layer takes torch's operators
    sizes = ((16, 100, 152), (16, 50, 76), (16, 25, 38)) if on_gpu else ()
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for (images, height, width), dtype in [(s, d) for s in sizes for d in dtypes]:
        shape = (images, 256, height, width)

        def inputs(device, seed, shape=shape, dtype=dtype):
            x = normal(device, seed, *shape).to(dtype).contiguous(memory_format=torch.channels_last)
            weight, bias = normal(device, 2, 256).requires_grad_(), normal(device, 3, 256).requires_grad_()
            grad = normal(device, 4, *shape).to(dtype).contiguous(memory_format=torch.channels_last)
            return x.requires_grad_(), weight, bias, grad

        size = torch.empty((), dtype=dtype).element_size()
        yield Case(
            "{} {} nhwc, both".format(list(shape), word(dtype)),
            inputs,
            {"fcos_core": bench_group_norm_relu.ours, "torch": norm_of_torch},
            5 * product(shape) * size,
            exact=lambda *t: norm_of_torch(*(leaf(s.double()) for s in t)),
            input_bytes=2 * product(shape) * size,
        )


def norm_of_torch(x, weight, bias, grad):
    # wants parameters of the dtype of the input
    return bench_group_norm_relu.peer(x, leaf(weight.to(x.dtype)), leaf(bias.to(x.dtype)), grad)


# name of an operator -> (title, cases(on_gpu, with_compile))
TABLES = {
    "sigmoid_focal_loss": ("Sigmoid focal loss, sum", focal_cases),
    "iou_loss": ("GIoU loss of boxes with weights, sum", iou_cases),
    "nms": ("NMS at IoU 0.6", nms_cases),
    "batched_nms": ("NMS over a batch of images", batched_nms_cases),
    "roi_align": ("RoIAlign, 7 x 7 bins", roi_align_cases),
    "roi_pool": ("RoI max pooling, 7 x 7 bins", roi_pool_cases),
    "group_norm_relu": ("GroupNorm with ReLU, 32 groups", norm_cases),
    "deform_conv": ("Deformable convolution, 3 x 3, 256 -> 256 channels", deform_cases),
}
