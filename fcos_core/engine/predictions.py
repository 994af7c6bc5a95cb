"""Detections as plain tensors: the file ``predictions.pth`` and what processes send to each other.

Format of the file (`torch.load(path, weights_only=True)` reads it):

    {"format": "fcos_core predictions", "version": 1, "dataset": name of the data set,
     "predictions": [{"index": number of the image in the data set,
                      "size": [width, height] of the frame of the boxes in pixels,
                      "boxes": float32 [M,4] x1 y1 x2 y2 with inclusive sizes,
                      "fields": {"scores": float32 [M], "labels": int64 [M], ...}}, ...]}

sorted by index. The frame is the network input, not the original image: multiply by the ratio of the sizes, or use
`BoxList.resize`.
"""

import torch

from fcos_core.structures.bounding_box import BoxList
from fcos_core.utils.miscellaneous import write_atomically
from fcos_core.utils.safe_pickle import load_torch_file

__all__ = ["to_plain", "from_plain", "save_predictions", "load_predictions"]

FORMAT = "fcos_core predictions"
VERSION = 1


def to_plain(predictions):
    """dict index -> BoxList as a list of dicts; fields that are not tensors are left out."""
    rows = []
    for index in sorted(predictions):
        boxlist = predictions[index].convert("xyxy")
        fields = {name: boxlist.get_field(name) for name in boxlist.fields()}
        rows.append(
            {
                "index": int(index),
                "size": [int(side) for side in boxlist.size],
                "boxes": boxlist.bbox.cpu(),
                "fields": {name: data.cpu() for name, data in fields.items() if isinstance(data, torch.Tensor)},
            }
        )
    return rows


def from_plain(rows):
    """The reverse of `to_plain`: dict index -> BoxList."""
    predictions = {}
    for row in rows:
        boxlist = BoxList(row["boxes"], tuple(row["size"]), mode="xyxy")
        for name, data in row["fields"].items():
            boxlist.add_field(name, data)
        predictions[row["index"]] = boxlist
    return predictions


def save_predictions(path, predictions, dataset_name=""):
    """Write the file that the head of this module describes.

    Args:
        path (str): an existing file is replaced.
        predictions (dict[int, BoxList]): by number of the image in the data set.
        dataset_name (str)
    """
    content = {"format": FORMAT, "version": VERSION, "dataset": str(dataset_name), "predictions": to_plain(predictions)}
    write_atomically(path, lambda stream: torch.save(content, stream))


def load_predictions(path):
    """Read what `save_predictions` wrote.

    Returns:
        dict[int, BoxList]

    Raises:
        ValueError: another kind of file.
    """
    content = load_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("load_predictions: expected a file written by inference(), got {}".format(path))
    return from_plain(content["predictions"])
