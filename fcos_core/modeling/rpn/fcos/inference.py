"""From the head's outputs to detections (arXiv:1904.01355, section 3.1), for a whole batch at once.

Shape letters as in levels.py; K is the number of candidates of an image, the same for all images of a batch.
"""
import torch
from torch import nn

from fcos_core.layers import batched_nms
from fcos_core.modeling.rpn.levels import flatten_levels
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.box_ops import PIXEL


def _level_table(counts, device):
    """[L, max(counts)] location indices of each level; rows of shorter levels are filled with R, one past the last."""
    ends = torch.tensor(counts, device=device).cumsum(0)
    column = torch.arange(max(counts), device=device)
    index = (ends - torch.tensor(counts, device=device))[:, None] + column
    return torch.where(index < ends[:, None], index, torch.full_like(index, sum(counts)))


def select_candidates(probabilities, quality, counts, threshold, top_n):
    """The best (location, class) pairs of every level and image.

    A pair is a candidate if its probability is above `threshold`, before the quality enters; pairs are ranked by
    probability * quality.  The best top_n pairs of a level lie on its best top_n locations, ranked by their best
    class, so a first cut over locations leaves little for the second one over pairs.

    Args:
        probabilities: [N, R, C].
        quality: [N, R], not negative.
        counts: L Python integers, locations of each level.
        threshold: float.
        top_n: candidates kept per level and image.

    Returns:
        scores [N, K] (probability * quality, -1 where a row of candidates is not full), location [N, K] and
        class index [N, K] (0-based).
    """
    num_images, num_locations, num_classes = probabilities.shape
    device = probabilities.device
    # 1. the best locations of each level
    best_class = probabilities.max(dim=2)[0]
    location_scores = (best_class * quality).masked_fill(best_class <= threshold, -1.0)
    padded = torch.cat((location_scores, location_scores.new_full((num_images, 1), -1.0)), dim=1)
    table = _level_table(counts, device)
    num_levels, longest = table.shape
    scores, column = padded[:, table].topk(min(top_n, longest), dim=2)
    location = table[None].expand(num_images, -1, -1).gather(2, column)
    # 2. the best pairs of these; the padding's location is replaced by a real one with no chance
    real = scores >= 0
    location = location.masked_fill(~real, 0)
    rows = location.view(num_images, -1, 1)
    pairs = probabilities.gather(1, rows.expand(-1, -1, num_classes))
    allowed = (pairs > threshold) & real.view(num_images, -1, 1)
    pairs = (pairs * quality.gather(1, rows[:, :, 0])[:, :, None]).masked_fill(~allowed, -1.0)
    pairs = pairs.view(num_images, num_levels, -1)
    scores, pair = pairs.topk(min(top_n, pairs.shape[2]), dim=2)
    shape = (num_images, num_levels, location.shape[2], num_classes)
    location = location[:, :, :, None].expand(shape).reshape(pairs.shape).gather(2, pair)
    classes = torch.arange(num_classes, device=device).expand(shape).reshape(pairs.shape).gather(2, pair)
    return scores.flatten(1), location.flatten(1), classes.flatten(1)


def decode_boxes(locations, distances, image_sizes):
    """Boxes from locations and distances to the four sides, clipped to the images.

    Args:
        locations: [N, K, 2] (x, y) pixels.
        distances: [N, K, 4] left, top, right, bottom, pixels.
        image_sizes: list of N (height, width), before padding.

    Returns:
        [N, K, 4] xyxy inside [0, width - 1] x [0, height - 1].
    """
    boxes = torch.cat((locations - distances[..., :2], locations + distances[..., 2:]), dim=2)
    sizes = torch.tensor([[w, h, w, h] for h, w in image_sizes], dtype=boxes.dtype, device=boxes.device)
    return torch.min(boxes.clamp(min=0), (sizes - PIXEL)[:, None, :])


def keep_best(scores, limit):
    """Drop (set to -1) what is below the limit-th best score of its row.

    Legacy: all that share the limit-th score stay, so a row can keep more than `limit`.
    """
    if limit <= 0 or scores.shape[1] <= limit:
        return scores
    lowest = scores.topk(limit, dim=1)[0][:, -1:]
    return scores.masked_fill(scores < lowest, -1.0)


class FCOSPostProcessor(nn.Module):
    """Turn predictions into BoxLists.

    Args:
        pre_nms_thresh: a class probability must be above this.
        pre_nms_top_n: candidates kept per level and image.
        nms_thresh: IoU above which the lower-scored of two boxes of a class is dropped; <= 0: no suppression.
        fpn_post_nms_top_n: detections kept per image; <= 0: all.
        min_size: smallest inclusive width and height, pixels.
        num_classes: foreground classes + 1.
        bbox_aug_enabled: leave suppression and the last cut to the code that merges several passes.
    """

    def __init__(
        self,
        pre_nms_thresh,
        pre_nms_top_n,
        nms_thresh,
        fpn_post_nms_top_n,
        min_size,
        num_classes,
        bbox_aug_enabled=False,
    ):
        super(FCOSPostProcessor, self).__init__()
        self.pre_nms_thresh = pre_nms_thresh
        self.pre_nms_top_n = pre_nms_top_n
        self.nms_thresh = nms_thresh
        self.fpn_post_nms_top_n = fpn_post_nms_top_n
        self.min_size = min_size
        self.num_classes = num_classes
        self.bbox_aug_enabled = bbox_aug_enabled

    @torch.no_grad()
    def forward(self, locations, box_cls, box_regression, centerness, image_sizes):
        """Detections of a batch.

        Args:
            locations: list of L tensors [R_l, 2] (x, y) pixels.
            box_cls: list of L tensors [N, C, H_l, W_l], logits.
            box_regression: list of L tensors [N, 4, H_l, W_l], pixels.
            centerness: list of L tensors [N, 1, H_l, W_l], logits.
            image_sizes: list of N (height, width) before padding.

        Returns:
            list of N BoxLists (xyxy, size (width, height)) with fields "labels" (int64, 1..C) and "scores"
            (sqrt(probability * centerness)), best first.
        """
        image_sizes = [(int(h), int(w)) for h, w in image_sizes]
        probabilities = self._scores(box_cls)
        quality = self._scores(centerness).squeeze(2)
        counts = [len(level) for level in locations]
        scores, location, classes = select_candidates(
            probabilities, quality, counts, self.pre_nms_thresh, self.pre_nms_top_n
        )
        distances = flatten_levels(box_regression).to(probabilities.dtype)
        distances = distances.gather(1, location[:, :, None].expand(-1, -1, 4))
        boxes = decode_boxes(torch.cat(locations).to(distances.dtype)[location], distances, image_sizes)
        scores = torch.where(scores >= 0, scores.clamp(min=0).sqrt(), scores)
        if self.min_size > 0:
            small = (boxes[..., 2:] - boxes[..., :2] + PIXEL < self.min_size).any(dim=2)
            scores = scores.masked_fill(small, -1.0)
        labels = classes + 1
        if not self.bbox_aug_enabled:
            scores = self._suppress(boxes, scores, labels)
        return self._to_boxlists(boxes, scores, labels, image_sizes)

    @staticmethod
    def _scores(maps):
        logits = flatten_levels(maps)
        return (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits).sigmoid()

    def _suppress(self, boxes, scores, labels):
        """Set to -1 the scores of boxes that lose in non-maximum suppression or in the cut of the image."""
        if self.nms_thresh > 0:
            keep = batched_nms(boxes, scores, labels.masked_fill(scores < 0, -1), self.nms_thresh)
            scores = scores.masked_fill(~keep, -1.0)
        return keep_best(scores, self.fpn_post_nms_top_n)

    @staticmethod
    def _to_boxlists(boxes, scores, labels, image_sizes):
        scores, order = scores.sort(dim=1, descending=True)
        boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
        labels = labels.gather(1, order)
        # The one host sync of inference: the lengths of the results depend on the data.
        numbers = (scores >= 0).sum(dim=1).tolist()
        results = []
        for i, (n, (height, width)) in enumerate(zip(numbers, image_sizes)):
            result = BoxList(boxes[i, :n], (width, height), mode="xyxy")
            result.add_field("labels", labels[i, :n])
            result.add_field("scores", scores[i, :n])
            results.append(result)
        return results


def make_fcos_postprocessor(config):
    """The post-processor that `config` describes."""
    return FCOSPostProcessor(
        pre_nms_thresh=config.MODEL.FCOS.INFERENCE_TH,
        pre_nms_top_n=config.MODEL.FCOS.PRE_NMS_TOP_N,
        nms_thresh=config.MODEL.FCOS.NMS_TH,
        fpn_post_nms_top_n=config.TEST.DETECTIONS_PER_IMG,
        min_size=0,
        num_classes=config.MODEL.FCOS.NUM_CLASSES,
        bbox_aug_enabled=config.TEST.BBOX_AUG.ENABLED,
    )
