"""What the fuzzer (fuzz.py) knows of each operator.

A rule has four functions, of which the last three take the arguments by their names in the schema:

- samples(device, dtype): argument lists to start from.
- wrong: why no answer to these arguments can be right, or None.  Written from the docstrings, not from the checks of
  the operators; a rule that is not certain is left out.
- results: (shape, dtype) of each result; None for a shape that depends on the data.
- reference (may be None; takes the results first): float64 results, None where they are too strange or too slow, also
  for one result.
"""

import math

import torch

from tests.layers.fuzz import DTYPES, Rules
from tests.reference import (
    deform_conv,
    deform_psroi_pooling,
    group_norm_relu,
    iou_loss,
    nms,
    roi_align,
    roi_pool,
    sigmoid_focal_loss,
)


def floating(**tensors):
    for name, t in tensors.items():
        if t is not None and t.dtype not in DTYPES:
            return "{} is {}".format(name, t.dtype)
    return None


def whole(t):
    return not t.dtype.is_floating_point and not t.dtype.is_complex and t.dtype != torch.bool


def first(*reasons):
    """The first of some reasons, None if there is none."""
    return next((reason for reason in reasons if reason), None)


def finite(number):
    return math.isfinite(float(number))


# ---- nms


def nms_samples(device, dtype):
    return [(s.boxes, s.scores, threshold) for s in nms.sample_inputs(device, dtype) for threshold in (0.3, 0.7)]


def ml_nms_samples(device, dtype):
    return [(s.boxes, s.scores, s.labels, 0.5) for s in nms.sample_inputs(device, dtype)]


def batched_nms_samples(device, dtype):
    return [(s.boxes, s.scores, s.labels, 0.5) for s in nms.batched_inputs(device, dtype)]


def nms_wrong(boxes, scores, iou_threshold):
    return first(
        floating(boxes=boxes, scores=scores),
        (boxes.dim() != 2 or boxes.shape[1] != 4) and "boxes are not [M, 4]",
        scores.shape != boxes.shape[:1] and "scores are not [M]",
        not iou_threshold >= 0 and "the threshold is negative or NaN",
    )


def ml_nms_wrong(boxes, scores, labels, iou_threshold):
    return first(
        nms_wrong(boxes, scores, iou_threshold),
        labels.shape != boxes.shape[:1] and "labels are not [M]",
        not whole(labels) and labels.dtype not in DTYPES and "labels are {}".format(labels.dtype),
        labels.dtype.is_floating_point and bool((labels.double() % 1 != 0).any()) and "labels are fractions",
        labels.dtype.is_floating_point and bool((labels.double().abs() == math.inf).any()) and "labels are infinite",
    )


def batched_nms_wrong(boxes, scores, labels, iou_threshold):
    return first(
        floating(boxes=boxes, scores=scores),
        (boxes.dim() != 3 or boxes.shape[2] != 4) and "boxes are not [N, K, 4]",
        scores.shape != boxes.shape[:2] and "scores are not [N, K]",
        labels.shape != boxes.shape[:2] and "labels are not [N, K]",
        not whole(labels) and "labels are {}".format(labels.dtype),
        not iou_threshold >= 0 and "the threshold is negative or NaN",
    )


def kept_results(**arguments):
    return [(None, torch.int64)]


def mask_results(scores, **arguments):
    return [(scores.shape, torch.bool)]


def nms_reference(results, boxes, scores, iou_threshold, labels=None):
    """Borderline IoUs depend on the dtype, so only some boxes of float64, of which no two are borderline."""
    if boxes.dtype != torch.float64 or len(boxes) > 300:
        return None
    return [torch.tensor(nms.ml_nms(boxes, scores, labels, iou_threshold), dtype=torch.int64)]


def batched_nms_reference(results, boxes, scores, labels, iou_threshold):
    if boxes.dtype != torch.float64 or scores.numel() > 1500:
        return None
    mask = nms.batched_nms(boxes, scores, labels, iou_threshold)
    return [torch.tensor(mask, dtype=torch.bool).reshape(scores.shape)]


# ---- focal loss


def focal_samples(device, dtype):
    return [
        (s.logits, s.targets, gamma, 0.25, reduction)
        for s in sigmoid_focal_loss.sample_inputs(device, dtype)
        for gamma, reduction in ((2.0, 0), (1.5, 2))
    ]


def focal_backward_samples(device, dtype):
    samples = []
    for logits, targets, gamma, alpha, reduction in focal_samples(device, dtype):
        grad = torch.rand(logits.shape if reduction == 0 else (), dtype=torch.float64).to(device, dtype)
        samples.append((grad, logits, targets, gamma, alpha, reduction))
    return samples


def focal_wrong(logits, targets, gamma, alpha, reduction, composite=False):
    return first(
        floating(logits=logits),
        logits.dim() != 2 and "logits are not [R, C]",
        targets.shape != logits.shape[:1] and "targets are not [R]",
        not whole(targets) and "targets are {}".format(targets.dtype),
        not (finite(gamma) and gamma >= 0) and "gamma is negative or not finite",
        not 0 <= alpha <= 1 and "alpha is not in [0, 1]",
        reduction not in (0, 2) and "there is no such reduction",
        # a GPU, and the composite, which is for GPUs, do not look at the values
        not composite
        and logits.device.type == "cpu"
        and bool(((targets.long() < -1) | (targets.long() > logits.shape[1])).any())
        and "targets are no classes",
    )


def focal_backward_wrong(grad, composite=False, **arguments):
    logits = arguments["logits"]
    return first(
        focal_wrong(composite=composite, **arguments),
        floating(grad=grad),
        arguments["reduction"] == 0 and grad.shape != logits.shape and "grad is not [R, C]",
        arguments["reduction"] == 2 and grad.numel() != 1 and "grad is not one number",
    )


def focal_results(logits, reduction, **arguments):
    if reduction == 0:
        return [(logits.shape, logits.dtype)]
    return [((), torch.float64 if logits.dtype == torch.float64 else torch.float32)]


def focal_reference(results, logits, targets, gamma, alpha, reduction):
    # a high power multiplies rounding errors, and half precision ends at 65504
    if logits.numel() > 500 or gamma > 8 or bool((logits.abs() > 1e4).any()):
        return None
    if bool(((targets.long() < -1) | (targets.long() > logits.shape[1])).any()):
        # NaN in the composite
        return None
    losses = sigmoid_focal_loss.sigmoid_focal_loss(logits, targets, gamma, alpha)
    return [losses if reduction == 0 else losses.sum()]


def like_logits(logits, **arguments):
    return [(logits.shape, logits.dtype)]


# ---- losses of boxes


def iou_samples(device, dtype):
    return [
        (s.pred, s.target, s.weight, kind, reduction)
        for kind, name in enumerate(iou_loss.KINDS)
        for s in iou_loss.sample_inputs(name, device, dtype)
        for reduction in (0, 2)
    ]


def iou_backward_samples(device, dtype):
    samples = []
    for pred, target, weight, kind, reduction in iou_samples(device, dtype):
        grad = torch.rand(pred.shape[:1] if reduction == 0 else (), dtype=torch.float64).to(device, dtype)
        samples.append((grad, pred, target, weight, kind, reduction))
    return samples


def iou_wrong(pred, target, weight, kind, reduction):
    return first(
        floating(pred=pred, target=target, weight=weight),
        (pred.dim() != 2 or pred.shape[1] != 4) and "pred is not [M, 4]",
        target.shape != pred.shape and "target is not like pred",
        target.dtype != pred.dtype and "target has another dtype",
        weight is not None and weight.shape != pred.shape[:1] and "weight is not [M]",
        kind not in (0, 1, 2, 3) and "there is no such kind",
        reduction not in (0, 2) and "there is no such reduction",
    )


def iou_backward_wrong(grad, **arguments):
    pred = arguments["pred"]
    return first(
        iou_wrong(**arguments),
        floating(grad=grad),
        arguments["reduction"] == 0 and grad.shape != pred.shape[:1] and "grad is not [M]",
        arguments["reduction"] == 2 and grad.numel() != 1 and "grad is not one number",
    )


def iou_results(pred, reduction, **arguments):
    shape = pred.shape[:1] if reduction == 0 else ()
    return [(shape, torch.float64 if pred.dtype == torch.float64 else torch.float32)]


def iou_reference(results, pred, target, weight, kind, reduction):
    # terms of a loss cancel, and areas overflow, where numbers are large
    tensors = [t.double() for t in (pred, target, weight) if t is not None]
    if len(pred) > 100 or any(not bool(torch.isfinite(t).all()) or bool((t.abs() > 1e3).any()) for t in tensors):
        return None
    if kind < 3 and bool((torch.cat([pred, target]) < 0).any()):
        # no distances
        return None
    losses = iou_loss.iou_loss(pred, target, weight, iou_loss.KINDS[kind])
    if bool((losses.abs() < 1e-2).all()):
        # terms of size 1 cancel out to what their rounding leaves
        return None
    return [losses if reduction == 0 else losses.sum()]


def like_pred(pred, **arguments):
    return [(pred.shape, pred.dtype)]


# ---- normalisation


def norm_samples(device, dtype):
    return [tuple(s[1:]) + (1e-5,) for s in group_norm_relu.sample_inputs(device, dtype)]


def norm_backward_samples(device, dtype):
    samples = []
    for input, weight, bias, num_groups, _ in norm_samples(device, dtype):
        grad = torch.rand(input.shape, dtype=torch.float64).to(device, dtype)
        moments = torch.rand(input.shape[0], num_groups, dtype=torch.float64) + 0.5
        moments = moments.to(device, torch.promote_types(dtype, torch.float32))
        samples.append((grad, input, weight, bias, moments, moments.clone(), num_groups))
    return samples


def norm_wrong(input, weight, bias, num_groups, eps=1e-5):
    return first(
        floating(input=input, weight=weight, bias=bias),
        input.dim() != 4 and "input is not [N, C, H, W]",
        weight.shape != input.shape[1:2] and "weight is not [C]",
        bias.shape != input.shape[1:2] and "bias is not [C]",
        (num_groups < 1 or input.shape[1] % num_groups != 0) and "num_groups does not divide C",
        not (finite(eps) and eps >= 0) and "eps is negative or not finite",
    )


def norm_backward_wrong(grad, mean, rstd, **arguments):
    input, compute = arguments["input"], torch.promote_types(arguments["input"].dtype, torch.float32)
    return first(
        norm_wrong(**arguments),
        floating(grad=grad),
        grad.shape != input.shape and "grad is not like input",
        (mean.dtype != compute or rstd.dtype != compute) and "moments are not of the compute dtype",
        (mean.shape != rstd.shape or mean.shape != (input.shape[0], arguments["num_groups"])) and "no moments",
    )


def norm_results(input, num_groups, **arguments):
    moments = ((input.shape[0], num_groups), torch.promote_types(input.dtype, torch.float32))
    return [(input.shape, input.dtype), moments, moments]


def norm_backward_results(input, weight, bias, **arguments):
    return [(t.shape, t.dtype) for t in (input, weight, bias)]


def norm_reference(results, input, weight, bias, num_groups, eps):
    if input.numel() == 0 or eps < 1e-6 or any(not bool((t.abs() < 1e3).all()) for t in (input, weight, bias)):
        return None
    # a group whose values hardly differ has no digits left
    groups = input.double().reshape(input.shape[0], num_groups, -1)
    if bool((groups.var(2, unbiased=False) + eps < 1e-3 * groups.abs().amax(2) ** 2).any()):
        return None
    return [group_norm_relu.group_norm_relu(input, weight, bias, num_groups, eps), None, None]


# ---- pooling of rois


def rois_wrong(rois, other, num_images, spatial_scale=1.0):
    if not finite(spatial_scale) or spatial_scale <= 0:
        return "spatial_scale is not finite and above 0"
    wrong = first(floating(rois=rois, other=other), (rois.dim() != 2 or rois.shape[1] != 5) and "rois are not [K, 5]")
    if wrong or other.device.type != "cpu":
        return wrong
    # float32 beside half features, whatever they were
    image = rois[:, 0].double()
    return None if bool(((image > -1) & (image < num_images)).all()) else "there is no such image"


def sizes_wrong(**sizes):
    for name, (value, least, most) in sizes.items():
        if not least <= value <= most:
            return "{} is {}".format(name, value)
    return None


MOST = 2**31  # no side of an output, no number of samples is as large


def roi_align_samples(device, dtype):
    return [
        (s.input, s.rois, s.spatial_scale, s.output_size[0], s.output_size[1], s.sampling_ratio, aligned)
        for s in roi_align.sample_inputs(device, dtype)
        for aligned in (False, True)
    ]


def roi_align_wrong(input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
    return first(
        input.dim() != 4 and "input is not [N, C, H, W]",
        rois_wrong(rois, input, input.shape[0], spatial_scale),
        sizes_wrong(
            pooled_height=(pooled_height, 1, MOST),
            pooled_width=(pooled_width, 1, MOST),
            sampling_ratio=(sampling_ratio, -math.inf, MOST),
        ),
    )


def roi_align_results(input, rois, pooled_height, pooled_width, **arguments):
    return [((rois.shape[0], input.shape[1], pooled_height, pooled_width), input.dtype)]


def roi_align_reference(results, input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
    extent = float((rois[:, 1:].double().abs().max() if rois.numel() else 0) * spatial_scale)
    # float32 positions of far rois differ by pixels, and adaptive sampling takes as many points
    if pooled_height * pooled_width > 100 or sampling_ratio > 4 or extent > 100:
        return None
    # the number of adaptive points jumps where a side is a whole multiple of the bins, or nothing
    if sampling_ratio <= 0 and (input.dtype != torch.float64 or spatial_scale < 1e-6):
        return None
    size = (pooled_height, pooled_width)
    return [roi_align.roi_align(input, rois, size, spatial_scale, sampling_ratio, bool(aligned))]


def roi_align_backward_samples(device, dtype):
    samples = []
    for input, rois, scale, height, width, ratio, aligned in roi_align_samples(device, dtype):
        grad = torch.rand((len(rois), input.shape[1], height, width), dtype=torch.float64).to(device, dtype)
        samples.append((grad, rois, scale, height, width) + tuple(input.shape) + (ratio, aligned))
    return samples


def pooled_grad_wrong(grad, rois, batch_size, channels, height, width, pooled, spatial_scale=1.0):
    return first(
        grad.dim() != 4 and "grad is not [K, C, height, width]",
        rois_wrong(rois, grad, batch_size, spatial_scale),
        tuple(grad.shape) != (rois.shape[0], channels) + pooled and "grad is not as the output",
        sizes_wrong(
            batch_size=(batch_size, 0, math.inf),
            channels=(channels, 0, math.inf),
            height=(height, 0, math.inf),
            width=(width, 0, math.inf),
        ),
    )


def roi_align_backward_wrong(grad, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned, **sizes):
    return pooled_grad_wrong(grad, rois, pooled=(pooled_height, pooled_width), spatial_scale=spatial_scale, **sizes)


def input_gradient_results(grad, batch_size, channels, height, width, **arguments):
    return [((batch_size, channels, height, width), grad.dtype)]


def roi_pool_samples(device, dtype):
    return [
        (s.input, s.rois, s.spatial_scale, s.output_size[0], s.output_size[1])
        for s in roi_pool.sample_inputs(device, dtype)
    ]


def roi_pool_wrong(input, rois, spatial_scale, pooled_height, pooled_width):
    return first(
        input.dim() != 4 and "input is not [N, C, H, W]",
        rois_wrong(rois, input, input.shape[0], spatial_scale),
        sizes_wrong(pooled_height=(pooled_height, 1, MOST), pooled_width=(pooled_width, 1, MOST)),
    )


def roi_pool_results(input, rois, pooled_height, pooled_width, **arguments):
    shape = (rois.shape[0], input.shape[1], pooled_height, pooled_width)
    return [(shape, input.dtype), (shape, torch.int32)]


def roi_pool_reference(results, input, rois, spatial_scale, pooled_height, pooled_width):
    extent = float((rois[:, 1:].double().abs().max() if rois.numel() else 0) * spatial_scale)
    work = len(rois) * input.shape[1:].numel() * (1 + pooled_height * pooled_width)
    # the rounding of coordinates is tested where numbers are chosen for it
    if input.dtype != torch.float64 or extent > 100 or work > 60000:
        return None
    output, argmax = roi_pool.roi_pool(input, rois, (pooled_height, pooled_width), spatial_scale)
    return [output, argmax.int()]


def roi_pool_backward_samples(device, dtype):
    samples = []
    for input, rois, scale, height, width in roi_pool_samples(device, dtype):
        output, argmax = torch.ops.fcos_core.roi_pool(input, rois, scale, height, width)
        samples.append((torch.rand_like(output), rois, argmax) + tuple(input.shape))
    return samples


def roi_pool_backward_wrong(grad, rois, argmax, batch_size, channels, height, width):
    return first(
        pooled_grad_wrong(grad, rois, batch_size, channels, height, width, tuple(grad.shape[2:])),
        not whole(argmax) and "argmax is {}".format(argmax.dtype),
        argmax.shape != grad.shape and "argmax is not as grad",
        grad.device.type == "cpu"
        and bool(((argmax < -1) | (argmax >= height * width)).any())
        and "argmax is not on the map",
    )


# ---- deformable pooling


def psroi_samples(device, dtype):
    samples = [s.arguments for s in deform_psroi_pooling.sample_inputs(device, dtype)]
    return samples + [s.arguments for s in deform_psroi_pooling.sample_inputs(device, dtype, rois_dtype=torch.float32)]


def psroi_backward_samples(device, dtype):
    samples = []
    for arguments in psroi_samples(device, dtype):
        _, rois, _, _, output_dim, _, pooled_size, _, _, _ = arguments
        grad = torch.rand((len(rois), output_dim, pooled_size, pooled_size), dtype=torch.float64)
        samples.append((grad.to(device, dtype),) + arguments)
    return samples


def psroi_wrong(
    input,
    rois,
    trans,
    spatial_scale,
    output_dim,
    group_size,
    pooled_size,
    part_size,
    sample_per_part,
    trans_std,
):
    sizes = dict.fromkeys(("group_size", "pooled_size", "part_size", "sample_per_part"))
    for name, value in zip(sizes, (group_size, pooled_size, part_size, sample_per_part)):
        sizes[name] = (value, 1, 1024)
    return first(
        input.dim() != 4 and "input is not [N, D * G * G, H, W]",
        rois_wrong(rois, input, input.shape[0], spatial_scale),
        sizes_wrong(output_dim=(output_dim, 0, math.inf), **sizes),
        input.shape[1] != output_dim * group_size**2 and "input has another number of channels",
        not 0 <= trans_std <= 1 and "trans_std is not in [0, 1]",
        trans is not None
        and first(
            floating(trans=trans),
            (trans.dim() != 4 or trans.shape[1] % 2 == 1 or trans.shape[1] == 0) and "trans has another shape",
            trans.shape[:1] + trans.shape[2:] != (rois.shape[0], part_size, part_size) and "trans has other sizes",
            output_dim % (trans.shape[1] // 2) != 0 and "classes do not share output_dim",
        ),
    )


def psroi_results(input, rois, trans, output_dim, pooled_size, **arguments):
    classes = 1 if trans is None else trans.shape[1] // 2
    grid = (pooled_size, pooled_size)
    return [
        ((rois.shape[0], output_dim) + grid, input.dtype),
        ((rois.shape[0], classes) + grid, torch.int32),
    ]


def psroi_reference(results, input, rois, trans, **numbers):
    classes = 1 if trans is None else trans.shape[1] // 2
    samples = len(rois) * classes * (numbers["pooled_size"] * numbers["sample_per_part"]) ** 2
    if samples > 1000 or bool((rois.double().abs() > 1e5).any()) or numbers["spatial_scale"] > 1e5:
        return None
    output, counts = deform_psroi_pooling.deform_psroi_pooling(input, rois, trans, **numbers)
    # a position that is half a cell outside is in or out by rounding
    return [output, counts.int()] if counts.equal(results[1].long()) else None


def psroi_backward_wrong(grad, **arguments):
    pooled_size = arguments["pooled_size"]
    return first(
        psroi_wrong(**arguments),
        floating(grad=grad),
        tuple(grad.shape) != (arguments["rois"].shape[0], arguments["output_dim"], pooled_size, pooled_size)
        and "grad is not as the output",
    )


def psroi_backward_results(input, rois, trans, **arguments):
    of_trans = ((0,), rois.dtype) if trans is None else (trans.shape, trans.dtype)
    return [(input.shape, input.dtype), of_trans]


# ---- deformable convolution


def deform_conv_samples(device, dtype):
    samples = deform_conv.sample_inputs(device, dtype)
    samples += deform_conv.sample_inputs(device, dtype, sampling_dtype=torch.float32)
    return [(s.input, s.weight, s.offset, s.mask, s.bias) + tuple(map(as_list, s.numbers)) for s in samples]


def as_list(number):
    return list(number) if isinstance(number, tuple) else number


def deform_conv_backward_samples(device, dtype):
    samples = []
    for input, weight, offset, mask, bias, *numbers in deform_conv_samples(device, dtype):
        grad = torch.rand((input.shape[0], weight.shape[0]) + offset.shape[2:], dtype=torch.float64).to(device, dtype)
        samples.append((grad, input, weight, offset, mask, bias is not None, *numbers))
    return samples


def pair(value):
    return list(value) if isinstance(value, (list, tuple)) else [value, value]


def deform_conv_wrong(
    input, weight, offset, mask, bias, stride, padding, dilation, groups, deformable_groups, grad=None
):
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    wrong = first(
        floating(input=input, offset=offset, mask=mask, grad=grad),
        (input.dim() != 4 or weight.dim() != 4 or offset.dim() != 4) and "a tensor has not four dimensions",
        any(t is not None and t.dtype != input.dtype for t in (weight, bias)) and "dtypes of features differ",
        any(len(p) != 2 for p in (stride, padding, dilation)) and "a pair has not two numbers",
        min(stride + dilation + [groups, deformable_groups]) < 1 and "a number is below 1",
        min(padding) < 0 and "padding is negative",
    )
    if wrong:
        return wrong
    sizes = [
        (input.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    taps = weight.shape[2] * weight.shape[3]
    images, channels = input.shape[:2]

    def unlike(t, count):
        return t is not None and tuple(t.shape) != (images, count, *sizes)

    return first(
        (channels % groups or weight.shape[0] % groups or channels % deformable_groups) and "groups do not divide",
        weight.shape[1] != channels // groups and "weight has other channels",
        (taps == 0 or min(sizes) < 1) and "the kernel is larger than the input",
        unlike(offset, deformable_groups * taps * 2) and "offset has another shape",
        unlike(mask, deformable_groups * taps) and "mask has another shape",
        unlike(grad, weight.shape[0]) and "grad has another shape",
        bias is not None and bias.shape != weight.shape[:1] and "bias has another shape",
    )


def deform_conv_results(input, weight, offset, **arguments):
    return [((input.shape[0], weight.shape[0]) + tuple(offset.shape[2:]), input.dtype)]


def deform_conv_reference(results, input, weight, offset, mask, bias, **numbers):
    for name in ("stride", "padding", "dilation"):
        numbers[name] = pair(numbers[name])
    if input.numel() * offset[0].numel() > 10**6 if len(offset) else False:
        return None
    if bool((offset.double().abs() > 1e3).any()) or any(bool((t.abs() > 100).any()) for t in (input, weight)):
        return None
    if input.dtype in (torch.float16, torch.bfloat16):
        # the columns of half precision are rounded
        return None
    return [deform_conv.deform_conv(input, weight, offset, mask, bias, **numbers)]


def deform_conv_backward_wrong(grad, with_bias, **arguments):
    return first(deform_conv_wrong(bias=None, grad=grad, **arguments))


def deform_conv_backward_results(input, weight, offset, mask, with_bias, **arguments):
    return [
        (input.shape, input.dtype),
        (weight.shape, weight.dtype),
        (offset.shape, offset.dtype),
        ((0,), offset.dtype) if mask is None else (mask.shape, mask.dtype),
        ((weight.shape[0] if with_bias else 0,), weight.dtype),
    ]


def composite(function):
    return lambda **arguments: function(composite=True, **arguments)


RULES = {
    "nms": Rules(nms_samples, nms_wrong, kept_results, nms_reference),
    "ml_nms": Rules(ml_nms_samples, ml_nms_wrong, kept_results, nms_reference),
    "batched_nms": Rules(batched_nms_samples, batched_nms_wrong, mask_results, batched_nms_reference),
    "sigmoid_focal_loss": Rules(focal_samples, focal_wrong, focal_results, focal_reference),
    "_sigmoid_focal_loss_backward": Rules(focal_backward_samples, focal_backward_wrong, like_logits, None),
    "group_norm_relu": Rules(norm_samples, norm_wrong, norm_results, norm_reference, two_formulas=True),
    "_group_norm_relu_backward": Rules(
        norm_backward_samples, norm_backward_wrong, norm_backward_results, None, two_formulas=True
    ),
    "iou_loss": Rules(iou_samples, iou_wrong, iou_results, iou_reference),
    "_iou_loss_backward": Rules(iou_backward_samples, iou_backward_wrong, like_pred, None),
    "roi_align": Rules(roi_align_samples, roi_align_wrong, roi_align_results, roi_align_reference),
    "_roi_align_backward": Rules(roi_align_backward_samples, roi_align_backward_wrong, input_gradient_results, None),
    "roi_pool": Rules(roi_pool_samples, roi_pool_wrong, roi_pool_results, roi_pool_reference),
    "_roi_pool_backward": Rules(roi_pool_backward_samples, roi_pool_backward_wrong, input_gradient_results, None),
    "deform_psroi_pooling": Rules(psroi_samples, psroi_wrong, psroi_results, psroi_reference),
    "_deform_psroi_pooling_backward": Rules(psroi_backward_samples, psroi_backward_wrong, psroi_backward_results, None),
    "deform_conv": Rules(deform_conv_samples, deform_conv_wrong, deform_conv_results, deform_conv_reference),
    "_deform_conv_backward": Rules(
        deform_conv_backward_samples, deform_conv_backward_wrong, deform_conv_backward_results, None
    ),
}

# the forms of ATen ops, by name, for tests without a GPU
RULES["_batched_nms_composite"] = RULES["batched_nms"]
RULES["_sigmoid_focal_loss_composite"] = RULES["sigmoid_focal_loss"]._replace(wrong=composite(focal_wrong))
RULES["_sigmoid_focal_loss_backward_composite"] = RULES["_sigmoid_focal_loss_backward"]._replace(
    wrong=composite(focal_backward_wrong)
)
RULES["_iou_loss_composite"] = RULES["iou_loss"]
RULES["_iou_loss_backward_composite"] = RULES["_iou_loss_backward"]
