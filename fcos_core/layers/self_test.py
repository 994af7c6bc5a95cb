"""Every operator once on a device, on inputs whose result is known: what the doctor runs in a process of its own.

    python -m fcos_core.layers.self_test cpu cuda:0

Prints a line of json before and after each operator, as fcos_core/build/probe.py reads them.
"""

import json
import sys
import time
import warnings

import torch

from fcos_core import layers
from fcos_core.build import probe
from fcos_core.layers._library import SlowOperatorsWarning, load, substitutes_because

# the row of the first step, whose remark says why the operators are not the compiled ones
LOADING = "loading the operators"


def _boxes(device):
    """Two boxes that overlap by half, and one far away."""
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 6.0], [50.0, 50.0, 59.0, 59.0]], device=device)
    return boxes, torch.tensor([0.9, 0.8, 0.7], device=device)


def _nms(device):
    boxes, scores = _boxes(device)
    return layers.nms(boxes, scores, 0.5)


def _ml_nms(device):
    boxes, scores = _boxes(device)
    return layers.ml_nms(boxes, scores, torch.tensor([1, 2, 1], device=device), 0.5)


def _batched_nms(device):
    boxes, scores = _boxes(device)
    labels = torch.tensor([[1, 1, 1], [1, 2, -1]], device=device)
    return layers.batched_nms(torch.stack([boxes, boxes]), torch.stack([scores, scores]), labels, 0.5)


def _sigmoid_focal_loss(device):
    """At logit 0 every probability is 1/2: the loss, and its gradient for the class that is there and another."""
    logits = torch.zeros(1, 2, device=device, requires_grad=True)
    loss = layers.sigmoid_focal_loss(logits, torch.tensor([1], device=device), 2.0, 0.25)
    loss.backward()
    return torch.stack([loss.detach(), logits.grad[0, 0], logits.grad[0, 1]])


def _group_norm_relu(device):
    """-1 and 1 are of mean 0 and variance 1; twice that plus 1 is -1, which ReLU cuts off, and 3."""
    input = torch.tensor([-1.0, 1.0], device=device).reshape(1, 2, 1, 1).repeat(1, 1, 2, 2).requires_grad_()
    weight = torch.full((2,), 2.0, device=device, requires_grad=True)
    output = layers.group_norm_relu(input, 1, weight, torch.ones(2, device=device), 0.0)
    output.sum().backward()
    return torch.stack([output.detach().sum(), weight.grad[0], weight.grad[1], input.grad.sum()])


def _iou_loss(device):
    """A box of side 4 in one of side 6: iou (16 + 1) / (36 + 1), and the slope of one of the four distances."""
    pred = torch.full((1, 4), 2.0, device=device, requires_grad=True)
    loss = layers.IOULoss("linear_iou")(pred, torch.full((1, 4), 3.0, device=device))
    loss.backward()
    return torch.stack([loss.detach(), pred.grad[0, 0]])


def _deform_conv(device):
    """Columns numbered 0 to 3, read half a column to the right, zero outside, times 2: sum and gradients."""
    input = torch.arange(4.0, device=device).reshape(1, 1, 1, 4).requires_grad_()
    offset = torch.tensor([0.0, 0.5], device=device).reshape(1, 2, 1, 1).repeat(1, 1, 1, 4).requires_grad_()
    weight = torch.full((1, 1, 1, 1), 2.0, device=device, requires_grad=True)
    total = layers.deform_conv(input, offset, weight).sum()
    total.backward()
    return torch.stack([total.detach(), weight.grad.sum(), input.grad.sum(), offset.grad[0, 1, 0, 0]])


def _deform_psroi_pooling(device):
    """Columns numbered 0 to 3, samples in columns 0 (clamped, no slope) and 1.75: the mean and its two gradients."""
    input = torch.arange(4.0, device=device).expand(1, 1, 4, 4).contiguous().requires_grad_()
    trans = torch.tensor([0.125, 0.0], device=device).reshape(1, 2, 1, 1).requires_grad_()
    rois = torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0]], device=device)
    pooled = layers.deform_psroi_pooling(input, rois, trans, 1.0, 1, pooled_size=1, sample_per_part=2, trans_std=0.5)
    pooled.sum().backward()
    return torch.stack([pooled.detach().sum(), input.grad.sum(), trans.grad[0, 0, 0, 0]])


def _columns(device):
    """A map whose columns are numbered 0 to 3, and a roi over all of it."""
    input = torch.arange(4.0, device=device).expand(1, 1, 4, 4).contiguous().requires_grad_()
    return input, torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0]], device=device)


def _roi_align(device):
    """Samples in columns 0.75 and 2.25: the mean, the whole gradient and that of the first pixel, 1/8 squared."""
    input, rois = _columns(device)
    pooled = layers.roi_align(input, rois, 1, 1.0, 2)
    pooled.sum().backward()
    return torch.stack([pooled.detach().sum(), input.grad.sum(), input.grad[0, 0, 0, 0]])


def _roi_pool(device):
    """The maxima of two by two bins, 1 and 3; of equal ones the first gets the gradient."""
    input, rois = _columns(device)
    pooled = layers.roi_pool(input, rois, 2, 1.0)
    pooled.sum().backward()
    return torch.stack([pooled.detach().reshape(4), input.grad[0, 0, 2]])


# operator -> a tiny call, forward and where there is one backward, and what it must return
CASES = {
    "deform_conv": (_deform_conv, [12.0, 6.0, 7.0, 2.0]),
    "deform_psroi_pooling": (_deform_psroi_pooling, [0.875, 1.0, 1.0]),
    "group_norm_relu": (_group_norm_relu, [12.0, 0.0, 4.0, 0.0]),
    "iou_loss": (_iou_loss, [20 / 37, -4 / 37]),
    "nms": (_nms, [0, 2]),
    "ml_nms": (_ml_nms, [0, 1, 2]),
    "batched_nms": (_batched_nms, [[True, False, True], [True, True, False]]),
    "roi_align": (_roi_align, [1.5, 1.0, 0.015625]),
    "roi_pool": (_roi_pool, [[1.0, 3.0, 1.0, 3.0], [0.0, 1.0, 0.0, 1.0]]),
    "sigmoid_focal_loss": (_sigmoid_focal_loss, [0.1732868, -0.0745717, 0.2237151]),
}


def operators():
    """List the operators of the loaded library, or those that serve instead, without the private ones."""
    if substitutes_because():
        from fcos_core.layers import _fallback

        return sorted(name for name in _fallback.OPERATORS if not name.startswith("_"))
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    ours = sorted(name.split("::")[1] for name in names if name.startswith("fcos_core::"))
    return [name for name in ours if not name.startswith("_")]


def run(op, device):
    """Run one operator twice and compare its result.

    Returns:
        dict: op, device, first and again (milliseconds), error (str, "" if the result is right), remark (str).
    """
    row = {"op": op, "device": device, "first": None, "again": None, "error": "", "remark": ""}
    if op not in CASES:
        return dict(row, remark="not tested: no call of it is known here")
    call, expected = CASES[op]
    try:
        result, row["first"] = _timed(call, device)
        # the first call may load or compile something
        row["again"] = min(_timed(call, device)[1] for _ in range(5))
        # NumPy may be broken, so no assert_allclose
        wanted = torch.tensor(expected)
        got = result.cpu()
        same = got.shape == wanted.shape and bool(((got.double() - wanted.double()).abs() <= 1e-4).all())
        if not same:
            row["error"] = "expected {}, got {}".format(expected, got.tolist())
    except Exception as error:
        row["error"] = probe.one_line(error)
    if substitutes_because():
        row["remark"] = "not compiled"
    elif device != "cpu" and not torch.ops.fcos_core._built_with_cuda():
        row["remark"] = "composed of torch's operators"
    return row


def _timed(call, device):
    start = time.time()
    result = call(torch.device(device))
    if device.startswith("cuda"):
        torch.cuda.synchronize(torch.device(device))
    return result, 1000 * (time.time() - start)


def main(devices):
    """Run all operators on all devices."""
    # the remark of the first row says it
    warnings.simplefilter("ignore", SlowOperatorsWarning)
    _print({"running": LOADING, "device": devices[0]})
    row = {"op": LOADING, "device": devices[0], "first": None, "again": None, "error": "", "remark": ""}
    start = time.time()
    try:
        load()
    except Exception as error:
        # a whole build log may hang on it: the message says where
        _print(dict(row, error=str(error)))
        return
    _print(dict(row, first=1000 * (time.time() - start), remark=substitutes_because()))
    for device in devices:
        for op in operators():
            _print({"running": op, "device": device})
            _print(run(op, device))


def _print(content):
    sys.stdout.write("\n{}{}\n".format(probe.MARK, json.dumps(content)))
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:] or ["cpu"])
