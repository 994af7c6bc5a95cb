"""FCOS of this package against FCOS of torchvision, both R-50 trained from scratch, on a folder in VOC layout.

Everything but the model is shared: images (kept in device memory), batches, flips, optimizer, schedule, precision,
gradient clipping and scorer.  The two differ in code, initial weights and details of the head only.

    python benchmarks/train_vs_torchvision.py --data path/to/BCCD --model ours torchvision --seed 0 1 --output results

prints one row per run and writes results/<model>_<seed>.json.  All images of the folder must have one size.
"""

import argparse
import json
import os
import time

import torch

from fcos_core.config import load_config
from fcos_core.config.paths_catalog import DatasetCatalog
from fcos_core.data import resolve_num_classes
from fcos_core.data.build import build_dataset
from fcos_core.data.datasets.evaluation import evaluate
from fcos_core.data.transforms import build_transforms
from fcos_core.modeling.detector import build_detection_model
from fcos_core.solver import make_lr_scheduler
from fcos_core.structures.bounding_box import FLIP_LEFT_RIGHT, BoxList
from fcos_core.structures.image_list import ImageList

CONFIG = os.path.join(os.path.dirname(__file__), "..", "configs", "scratch", "fcos_imprv_R_50_FPN.yaml")


class Ours(torch.nn.Module):
    """The detector that the config describes."""

    def __init__(self, cfg):
        super().__init__()
        self.model = build_detection_model(cfg)

    def forward(self, images, targets=None):
        sizes = [tuple(images.shape[-2:])] * len(images)
        return self.model(ImageList(images, sizes), targets)


class Torchvision(torch.nn.Module):
    """torchvision's detector behind the same calls; its own resizing and normalisation are switched off."""

    def __init__(self, cfg):
        super().__init__()
        from torchvision.models.detection import fcos_resnet50_fpn

        self.model = fcos_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=cfg.MODEL.FCOS.NUM_CLASSES,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            image_mean=[0.0] * 3,
            image_std=[1.0] * 3,
            score_thresh=cfg.MODEL.FCOS.INFERENCE_TH,
            nms_thresh=cfg.MODEL.FCOS.NMS_TH,
            detections_per_img=cfg.TEST.DETECTIONS_PER_IMG,
            topk_candidates=cfg.MODEL.FCOS.PRE_NMS_TOP_N,
        )

    def forward(self, images, targets=None):
        if self.training:
            return self.model(list(images), [{"boxes": t.bbox, "labels": t.get_field("labels")} for t in targets])
        height, width = images.shape[-2:]
        found = []
        for result in self.model(list(images)):
            boxes = BoxList(result["boxes"].float(), (width, height), mode="xyxy")
            boxes.add_field("labels", result["labels"])
            boxes.add_field("scores", result["scores"].float())
            found.append(boxes)
        return found


MODELS = {"ours": Ours, "torchvision": Torchvision}


def load(name, cfg, is_train, device):
    """Data set, images [n, 3, H, W] and BoxLists, on the device."""
    dataset = build_dataset([name], build_transforms(cfg, is_train=False), DatasetCatalog, is_train)
    dataset = dataset[0]
    items = [dataset[i] for i in range(len(dataset))]
    return (
        dataset,
        torch.stack([image for image, _, _ in items]).to(device),
        [target.to(device) for _, target, _ in items],
    )


def batches(images, targets, cfg, seed):
    """Endless shuffled batches with random flips, the same for every model."""
    draw = torch.Generator().manual_seed(seed)
    size = cfg.SOLVER.IMS_PER_BATCH
    order = []
    while True:
        while len(order) < size:
            order += torch.randperm(len(targets), generator=draw).tolist()
        index, order = order[:size], order[size:]
        flips = torch.rand(size, generator=draw) < cfg.INPUT.HORIZONTAL_FLIP_PROB_TRAIN
        batch = images[torch.tensor(index, device=images.device)]
        batch = torch.where(flips.to(batch.device)[:, None, None, None], batch.flip(3), batch)
        yield batch, [targets[i].transpose(FLIP_LEFT_RIGHT) if f else targets[i] for i, f in zip(index, flips.tolist())]


def train(model, stream, cfg, device):
    """Run the schedule of the config; returns seconds."""
    optimizer = torch.optim.SGD(
        model.parameters(), cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, weight_decay=cfg.SOLVER.WEIGHT_DECAY
    )
    scheduler = make_lr_scheduler(cfg, optimizer)
    model.train()
    start = time.time()
    for iteration in range(1, cfg.SOLVER.MAX_ITER + 1):
        images, targets = next(stream)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.SOLVER.AMP == "bfloat16"):
            loss = sum(model(images, targets).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.SOLVER.CLIP_GRADIENTS)
        optimizer.step()
        scheduler.step()
        if iteration % 200 == 0:
            print("  iteration {} loss {:.4f} {:.0f} s".format(iteration, loss.item(), time.time() - start), flush=True)
    return time.time() - start


@torch.no_grad()
def test(model, dataset, images, cfg, device):
    """COCO metrics of the model on a data set."""
    model.eval()
    found = []
    for part in images.split(8):
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.SOLVER.AMP == "bfloat16"):
            found += model(part.contiguous(memory_format=torch.channels_last))
    metrics = evaluate(dataset, [boxes.to("cpu") for boxes in found], None)
    return {key: float(metrics[key]) for key in ("AP", "AP50", "AP75")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with Annotations, JPEGImages and ImageSets/Main")
    parser.add_argument("--splits", nargs=2, default=["train", "test"], metavar=("TRAIN", "TEST"))
    parser.add_argument("--model", nargs="+", choices=sorted(MODELS), default=["ours", "torchvision"])
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--output", default="output/train_vs_torchvision")
    parser.add_argument("--config-file", default=CONFIG)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.makedirs(args.output, exist_ok=True)
    cfg, explicit = load_config(args.config_file, args.opts)
    names = ["{}:{}".format(args.data, split) for split in args.splits]
    resolve_num_classes(cfg, names, "MODEL.FCOS.NUM_CLASSES" in explicit)
    _, train_images, train_targets = load(names[0], cfg, True, device)
    dataset, test_images, _ = load(names[1], cfg, False, device)
    for seed in args.seed:
        for kind in args.model:
            torch.manual_seed(seed)
            model = MODELS[kind](cfg).to(device, memory_format=torch.channels_last)
            seconds = train(model, batches(train_images, train_targets, cfg, seed), cfg, device)
            row = dict(model=kind, seed=seed, seconds=seconds, **test(model, dataset, test_images, cfg, device))
            print(
                "{model:12s} seed {seed}  AP {AP:.4f}  AP50 {AP50:.4f}  AP75 {AP75:.4f}  {seconds:.0f} s".format(**row),
                flush=True,
            )
            with open(os.path.join(args.output, "{}_{}.json".format(kind, seed)), "w") as f:
                json.dump(row, f)


if __name__ == "__main__":
    main()
