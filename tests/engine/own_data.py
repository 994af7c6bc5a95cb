"""A small data set in COCO format and a small FCOS for it, on the CPU."""
import json
import os

import numpy as np
from PIL import Image

from fcos_core.config import load_config

SIZE = 96  # pixels, both sides of every image


def write_data(folder, boxes_per_image, classes=2, seed=0):
    """Images with bright rectangles; returns the name of the data set, `file.json:folder`.

    Args:
        boxes_per_image (list[int]): one image per entry.
        classes (int): the colour of a rectangle tells its class.
    """
    random = np.random.RandomState(seed)
    os.makedirs(os.path.join(str(folder), "images"), exist_ok=True)
    images, annotations = [], []
    for number, count in enumerate(boxes_per_image, 1):
        pixels = random.randint(0, 60, (SIZE, SIZE, 3)).astype(np.uint8)
        for _ in range(count):
            width, height = (int(side) for side in random.randint(24, 60, 2))
            x, y = int(random.randint(0, SIZE - width)), int(random.randint(0, SIZE - height))
            category = int(random.randint(1, classes + 1))
            pixels[y : y + height, x : x + width, category % 3] = 230
            box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category, **box})
        Image.fromarray(pixels).save(os.path.join(str(folder), "images", f"{number}.png"))
        images.append({"id": number, "file_name": f"{number}.png", "width": SIZE, "height": SIZE})
    categories = [{"id": k, "name": f"kind{k}"} for k in range(1, classes + 1)]
    path = os.path.join(str(folder), "instances.json")
    with open(path, "w") as stream:
        json.dump({"images": images, "annotations": annotations, "categories": categories}, stream)
    return path + ":" + os.path.join(str(folder), "images")


def options(data, output, **more):
    """KEY VALUE pairs of a thin ResNet-50 FCOS that trains in tenths of seconds per iteration."""
    values = {
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.CONV_BODY": "R-50-FPN-RETINANET",
        "MODEL.BACKBONE.FREEZE_CONV_BODY_AT": -1,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
        "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": 32,
        "MODEL.RETINANET.USE_C5": False,
        "MODEL.FCOS.NUM_CONVS": 1,
        "DATASETS.TRAIN": (data,),
        "DATASETS.TEST": (data,),
        "INPUT.MIN_SIZE_TRAIN": (SIZE,),
        "INPUT.MIN_SIZE_TEST": SIZE,
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.SIZE_DIVISIBILITY": 32,
        "SOLVER.IMS_PER_BATCH": 4,
        "TEST.IMS_PER_BATCH": 2,
        "SOLVER.BASE_LR": 0.002,
        "SOLVER.MAX_ITER": 6,
        "SOLVER.CHECKPOINT_PERIOD": 3,
        "SOLVER.LOG_PERIOD": 1,
        "SOLVER.TENSORBOARD": False,
        "SEED": 1,
        "OUTPUT_DIR": str(output),
    }
    values.update({name.replace("__", "."): value for name, value in more.items()})
    return [str(word) for pair in values.items() for word in pair]


def config(data, output, **more):
    """(cfg, explicit keys) for `options`."""
    return load_config("", options(data, output, **more))
