"""NMS beside torchvision's: `python -m benchmarks.bench_nms [--device cuda] [--threads 2]`, from the repository root.

torchvision counts no +1 and returns indices by score, so times compare, results do not (tests/layers/test_nms.py
compares them after conversion).  Its batched form gets one label per image and class, as its users do.
"""

import torch
import torchvision

from benchmarks import compare
from fcos_core.layers import batched_nms, ml_nms, nms
from tests.reference.nms import random_boxes

THRESHOLD = 0.6


def cases(device):
    for num_boxes in (1000, 5000, 10000, 50000):
        for crowd, clusters in (("crowded", num_boxes // 12), ("sparse", 10 * num_boxes)):
            boxes, scores, labels = (t.to(device) for t in random_boxes(num_boxes, num_labels=80, clusters=clusters))
            kept = len(nms(boxes, scores, THRESHOLD))
            if num_boxes < 50000 or crowd == "crowded":
                yield (
                    "nms {}, {} kept ({})".format(num_boxes, kept, crowd),
                    {
                        "fcos_core": lambda b=boxes, s=scores: nms(b, s, THRESHOLD),
                        "torchvision": lambda b=boxes, s=scores: torchvision.ops.nms(b, s, THRESHOLD),
                    },
                )
            yield (
                "ml_nms {}, 80 labels ({})".format(num_boxes, crowd),
                {
                    "fcos_core": lambda b=boxes, s=scores, t=labels: ml_nms(b, s, t, THRESHOLD),
                    "torchvision": lambda b=boxes, s=scores, t=labels: torchvision.ops.batched_nms(b, s, t, THRESHOLD),
                },
            )
    for num_images, num_boxes in ((16, 1000), (16, 5000)):
        lists = [random_boxes(num_boxes, num_labels=80, seed=i) for i in range(num_images)]
        boxes, scores, labels = (torch.stack(parts).to(device) for parts in zip(*lists))
        unique = labels + 80 * torch.arange(num_images, device=device)[:, None]
        flat = boxes.flatten(0, 1), scores.flatten(), unique.flatten()
        yield (
            "batched_nms {} x {}, 80 labels".format(num_images, num_boxes),
            {
                "fcos_core": lambda b=boxes, s=scores, t=labels: batched_nms(b, s, t, THRESHOLD),
                "torchvision": lambda f=flat: torchvision.ops.batched_nms(f[0], f[1], f[2], THRESHOLD),
            },
        )


if __name__ == "__main__":
    options = compare.arguments(__doc__)
    compare.table("NMS at IoU {}".format(THRESHOLD), cases(options.device), options)
