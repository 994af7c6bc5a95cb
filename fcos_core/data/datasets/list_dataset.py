"""Images without annotations, from a list of files."""
import torch

from fcos_core.structures.bounding_box import BoxList

from .detection import DetectionDataset, image_size


class ListDataset(DetectionDataset):
    """Images for prediction.

    Args:
        image_lists (sequence[str]): paths.
        transforms (callable | None): (image, target) -> (image, target).
    """

    has_annotations = False

    def __init__(self, image_lists, transforms=None):
        super(ListDataset, self).__init__(transforms)
        self.image_lists = image_lists

    def __len__(self):
        return len(self.image_lists)

    def image_name(self, index):
        """The path as it was given."""
        return self.image_lists[index]

    image_path = image_name

    def get_img_info(self, item):
        """dict with `file_name`, `width` and `height` (pixels), from the header of the file."""
        width, height = image_size(self.image_lists[item])
        return {"file_name": self.image_lists[item], "width": width, "height": height}

    def get_target(self, index):
        """A stand-in with no box."""
        info = self.get_img_info(index)
        target = BoxList(torch.zeros(0, 4), (info["width"], info["height"]), mode="xyxy")
        target.add_field("labels", torch.zeros(0, dtype=torch.int64))
        return target
