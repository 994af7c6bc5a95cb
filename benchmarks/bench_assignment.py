"""Memory and time of ATSS's assignment beside the naive form: `python -m benchmarks.bench_assignment [--device cuda]`.

The naive form is the algorithm of the paper on whole matrices of anchors and boxes, image by image ("naive, one image")
and for the batch at once ("naive, batch").  All must assign the same boxes.  On a CPU the peak is that of the bytes of
all tensors alive together, which needs torch 2; on a GPU that of torch.cuda.max_memory_allocated.
"""
import argparse
import time

import numpy as np
import torch

from fcos_core.config import load_config
from fcos_core.modeling.rpn.anchor_generator import make_anchor_generator_atss
from fcos_core.modeling.rpn.atss.targets import MARGIN, Pyramid, assign_atss
from fcos_core.structures import box_ops
from tests.live_bytes import LiveBytes

STRIDES = [8, 16, 32, 64, 128]
TOPK = 9


def random_boxes(num_images, num_boxes, height, width):
    """[N, M, 4] float32 boxes of all sizes; not on whole pixels, so that hardly any two distances are equal."""
    rng = np.random.RandomState(0)
    corner = rng.uniform(0, [width - 4, height - 4], (num_images, num_boxes, 2))
    side = np.exp(rng.uniform(np.log(4), np.log(min(height, width)), corner.shape))
    far = np.minimum(corner + side, [width - 1, height - 1])
    return torch.from_numpy(np.concatenate([corner, far], axis=2).astype(np.float32))


def naive(pyramid, boxes):
    """Index of the box of each anchor, -1 for background: [N, R] for boxes [N, M, 4]."""
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    iou = box_ops.pairwise_iou(boxes, pyramid.anchors)  # [N, M, R]
    locations = torch.cat(
        [
            origin + stride * torch.stack(_grid(size, boxes.device), dim=-1).reshape(-1, 2)
            for origin, stride, size in zip(pyramid.origins, pyramid.strides, pyramid.grid_sizes)
        ]
    )
    distance = (centers[..., None, :] - locations).pow(2).sum(dim=-1)  # [N, M, R]
    candidate = torch.zeros_like(iou, dtype=torch.bool)
    start = 0
    for count in pyramid.counts:
        nearest = distance[..., start : start + count].topk(min(TOPK, count), dim=-1, largest=False)[1]
        candidate.scatter_(-1, nearest + start, True)
        start += count
    number = candidate.sum(dim=-1, keepdim=True)
    values = iou.double().masked_fill(~candidate, 0.0)
    mean = values.sum(dim=-1, keepdim=True) / number
    variance = (values - mean).pow(2).masked_fill(~candidate, 0.0).sum(dim=-1, keepdim=True) / (number - 1)
    (x, y), (x1, y1, x2, y2) = pyramid.centers.unbind(-1), boxes[..., None].unbind(-2)
    inside = torch.min(torch.min(x - x1, y - y1), torch.min(x2 - x, y2 - y)) > MARGIN
    positive = candidate & inside & (iou >= (mean + variance.sqrt()).to(iou.dtype))
    best, index = iou.masked_fill(~positive, -1.0).max(dim=-2)
    return index.masked_fill(best < 0, -1)


def _grid(size, device):
    height, width = size
    x, y = torch.arange(width, device=device), torch.arange(height, device=device)
    return [x[None, :].expand(height, width), y[:, None].expand(height, width)]


def bounded(pyramid, boxes):
    """The package's assignment, in the same form."""
    assignment = assign_atss(pyramid, boxes, torch.ones_like(boxes[..., 0], dtype=torch.int64), TOPK)
    return assignment.index.masked_fill(~assignment.positive, -1)


def image_by_image(pyramid, boxes):
    """The naive form with the matrices of one image at a time."""
    return torch.cat([naive(pyramid, boxes[i : i + 1]) for i in range(len(boxes))])


def measure(function, pyramid, boxes):
    """(result, peak bytes beyond the inputs, seconds)."""
    begin = time.perf_counter()
    if boxes.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = function(pyramid, boxes)
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before, time.perf_counter() - begin
    watch = LiveBytes()
    with watch:
        result = function(pyramid, boxes)
    return result, watch.peak, time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--boxes", type=int, default=1000, help="of each image")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), help="height and width, pixels")
    parser.add_argument("--skip-batch", action="store_true", help="leave out the naive form of the batch, about 12 GB")
    options = parser.parse_args()

    height, width = options.size
    grids = [(-(-height // s), -(-width // s)) for s in STRIDES]
    generator = make_anchor_generator_atss(load_config("", ["MODEL.ATSS_ON", True])[0]).to(options.device)
    pyramid = Pyramid(generator.level_anchors(grids), STRIDES)
    boxes = random_boxes(options.images, options.boxes, height, width).to(options.device)
    print(
        "{} images of {} x {} with {} boxes, {} anchors, torch {}, {}\n".format(
            options.images, height, width, options.boxes, len(pyramid.anchors), torch.__version__, options.device
        )
    )
    contenders = [("fcos_core", bounded), ("naive, one image", image_by_image), ("naive, batch", naive)]
    wanted, ours = None, 0
    print("| form | peak MB | times ours | seconds | positives | anchors assigned otherwise |\n|" + 6 * "---|")
    for name, function in contenders[: 2 if options.skip_batch else 3]:
        result, peak, seconds = measure(function, pyramid, boxes)
        if wanted is None:
            wanted, ours = result, peak
        numbers = (name, peak / 1e6, peak / ours, seconds, int((result >= 0).sum()), int((result != wanted).sum()))
        print("| {} | {:.0f} | {:.1f} | {:.2f} | {} | {} |".format(*numbers), flush=True)


if __name__ == "__main__":
    main()
