"""From scores to detections, for a whole batch at once: what the post-processing of the dense heads shares.

Shape letters as in levels.py (R locations, or anchors); K is the number of candidates of an image, the same for all
images of a batch.
"""
import torch
from torch import nn

from fcos_core.layers import batched_nms
from fcos_core.modeling.rpn.levels import constants, flatten_levels, per_location
from fcos_core.modeling.rpn.losses import full_precision, take
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.box_ops import PIXEL
from fcos_core.structures.boxlist_ops import boxlist_ml_nms, cat_boxlist
from fcos_core.utils.overrides import overridden


def _level_table(counts, device):
    """[L, max(counts)] location indices of each level; rows of shorter levels are filled with R, one past the last."""
    lengths = constants(counts, torch.int64, device)
    ends = lengths.cumsum(0)
    index = (ends - lengths)[:, None] + torch.arange(max(counts), device=device)
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


def decode_selected(box_coder, box_regression, anchors, index, dtype):
    """Boxes of some anchors.

    Args:
        box_regression: list of L tensors [N, A * 4, H_l, W_l].
        anchors: list of L tensors [H_l, W_l, A, 4].
        index: [N, K] int64, into all R anchors.
        dtype: of the result.

    Returns:
        [N, K, 4] xyxy pixels.
    """
    regression = flatten_levels(box_regression, anchors[0].shape[2]).to(dtype)
    regression = regression.gather(1, index[:, :, None].expand(-1, -1, 4))
    anchors = torch.cat([level.reshape(-1, 4) for level in anchors]).to(dtype)
    return box_coder.decode(regression, anchors[index])


def clip_boxes(boxes, image_sizes):
    """Move corners into the images.

    Args:
        boxes: [N, K, 4] xyxy pixels.
        image_sizes: list of N (height, width), before padding.

    Returns:
        [N, K, 4] xyxy inside [0, width - 1] x [0, height - 1].
    """
    sizes = constants([[w, h, w, h] for h, w in image_sizes], boxes.dtype, boxes.device)
    return torch.min(boxes.clamp(min=0), (sizes - PIXEL)[:, None, :])


def keep_best(scores, limit):
    """Drop (set to -1) what is below the limit-th best score of its row.

    Legacy: all that share the limit-th score stay, so a row can keep more than `limit`.
    """
    if limit <= 0 or scores.shape[1] <= limit:
        return scores
    lowest = scores.topk(limit, dim=1)[0][:, -1:]
    return scores.masked_fill(scores < lowest, -1.0)


class DensePostProcessor(nn.Module):
    """Settings and last steps of post-processing; the heads add how boxes and scores come from their predictions.

    Args:
        pre_nms_thresh: a class probability must be above this.
        pre_nms_top_n: candidates kept per level and image.
        nms_thresh: IoU above which the lower-scored of two boxes of a class is dropped; <= 0: no suppression.
        fpn_post_nms_top_n: detections kept per image; <= 0: all.
        min_size: smallest inclusive width and height, pixels.
        num_classes: foreground classes + 1.
        bbox_aug_enabled: leave suppression and the last cut to the code that merges several passes.
        bbox_aug_vote: ... unless that code votes: it wants the detections of each pass.
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
        bbox_aug_vote=False,
    ):
        super(DensePostProcessor, self).__init__()
        self.pre_nms_thresh = pre_nms_thresh
        self.pre_nms_top_n = pre_nms_top_n
        self.nms_thresh = nms_thresh
        self.fpn_post_nms_top_n = fpn_post_nms_top_n
        self.min_size = min_size
        self.num_classes = num_classes
        self.bbox_aug_enabled = bbox_aug_enabled
        self.bbox_aug_vote = bbox_aug_vote

    @staticmethod
    def probabilities(maps, anchors=1):
        """Sigmoid of L maps of logits [N, anchors * C, H_l, W_l], in float32 at least: [N, R, C]."""
        return full_precision(flatten_levels(maps, anchors)).sigmoid()

    def forward_for_single_feature_map(self, *predictions):
        """Candidates of one level, before suppression; subclasses say what they are made of.

        Legacy: a subclass that overrides this method or `select_over_all_levels` has its batches go through them,
        level by level; the methods of this package work on all levels at once.
        """
        raise NotImplementedError("DensePostProcessor.forward_for_single_feature_map: a subclass says it")

    def select_over_all_levels(self, boxlists):
        """Suppress and cut the candidates of each image: list of N BoxLists -> list of N BoxLists."""
        results = []
        for boxlist in boxlists:
            boxlist = boxlist_ml_nms(boxlist, self.nms_thresh)
            scores = keep_best(boxlist.get_field("scores")[None], self.fpn_post_nms_top_n)[0]
            results.append(boxlist[scores >= 0])
        return results

    def goes_level_by_level(self, base):
        """Whether the class of this object has a step of its own, in place of `base`'s; see the method above."""
        return overridden(self, base, "forward_for_single_feature_map", "select_over_all_levels")

    def level_by_level(self, levels):
        """Detections of a batch by the two steps.

        Args:
            levels: for each level, the arguments of `forward_for_single_feature_map`.

        Returns:
            list of N BoxLists.
        """
        by_level = [self.forward_for_single_feature_map(*predictions) for predictions in levels]
        boxlists = [cat_boxlist(list(image)) for image in zip(*by_level)]
        return self.select_over_all_levels(boxlists) if self._suppresses() else boxlists

    def _suppresses(self):
        return not self.bbox_aug_enabled or self.bbox_aug_vote

    def detections(self, boxes, scores, classes, image_sizes, suppress=None):
        """Clip, suppress, cut and sort the candidates.

        Args:
            boxes: [N, K, 4] xyxy pixels.
            scores: [N, K]; negative: not a candidate.
            classes: [N, K] int64, 0-based.
            image_sizes: list of N (height, width) before padding.
            suppress: whether to suppress and cut; None: unless that is left to the merging of several passes.

        Returns:
            list of N BoxLists (xyxy, size (width, height)) with fields "labels" (int64, 1..C) and "scores", best first.
        """
        boxes = clip_boxes(boxes, image_sizes)
        if self.min_size > 0:
            small = (boxes[..., 2:] - boxes[..., :2] + PIXEL < self.min_size).any(dim=2)
            scores = scores.masked_fill(small, -1.0)
        labels = classes + 1
        if self._suppresses() if suppress is None else suppress:
            scores = self._suppress(boxes, scores, labels)
        return self._to_boxlists(boxes, scores, labels, image_sizes)

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


class DistancePostProcessor(DensePostProcessor):
    """Detections of a head whose class probabilities also tell the quality of the box, given by distances in strides.

    Args:
        strides: L numbers, pixels.
        The others: see DensePostProcessor.
    """

    def __init__(self, strides, **options):
        super(DistancePostProcessor, self).__init__(**options)
        self.strides = list(strides)

    def distances(self, regression):
        """From predictions [N, K, D] to distances [N, K, 4] left, top, right, bottom, in strides: the same, D = 4."""
        return regression

    @torch.no_grad()
    def forward(self, locations, box_cls, box_regression, image_sizes):
        """Detections of a batch.

        Args:
            locations: list of L tensors [R_l, 2] (x, y) pixels.
            box_cls: list of L tensors [N, C, H_l, W_l], logits.
            box_regression: list of L tensors [N, D, H_l, W_l], see `distances`.
            image_sizes: list of N (height, width) before padding.

        Returns:
            list of N BoxLists (xyxy, size (width, height)) with fields "labels" (int64, 1..C) and "scores" (class
            probabilities), best first.
        """
        probabilities = self.probabilities(box_cls)
        counts = [len(level) for level in locations]
        alone = probabilities.new_ones(probabilities.shape[:2])  # nothing weighs the probabilities
        scores, index, classes = select_candidates(
            probabilities, alone, counts, self.pre_nms_thresh, self.pre_nms_top_n
        )
        strides = per_location(self.strides, counts, index.device, probabilities.dtype)[index][:, :, None]
        distances = self.distances(take(full_precision(flatten_levels(box_regression)), index)) * strides
        centers = torch.cat(locations).to(probabilities.dtype)[index]
        boxes = torch.cat((centers - distances[..., :2], centers + distances[..., 2:]), dim=2)
        return self.detections(boxes, scores, classes, whole_sizes(image_sizes))


def dense_options(config, options):
    """The arguments of DensePostProcessor that every dense head reads from the same keys.

    Args:
        config: reads TEST.
        options: the head's own section of `config`.

    Returns:
        dict
    """
    return {
        "pre_nms_thresh": options.INFERENCE_TH,
        "pre_nms_top_n": options.PRE_NMS_TOP_N,
        "nms_thresh": options.NMS_TH,
        "fpn_post_nms_top_n": config.TEST.DETECTIONS_PER_IMG,
        "min_size": 0,
        "num_classes": options.NUM_CLASSES,
        "bbox_aug_enabled": config.TEST.BBOX_AUG.ENABLED,
        "bbox_aug_vote": config.TEST.BBOX_AUG.VOTE,
    }


def geometric_mean(scores):
    """sqrt(probability * quality) of the candidates; what is negative stays."""
    return torch.where(scores >= 0, scores.clamp(min=0).sqrt(), scores)


def whole_sizes(image_sizes):
    """Image sizes as a list of (height, width) Python integers."""
    return [(int(height), int(width)) for height, width in image_sizes]
