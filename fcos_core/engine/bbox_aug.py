"""Multi-scale and flip testing: one image goes through the model several times, and the boxes of all passes are merged.

The passes are the plain one, its mirror image (H_FLIP), every further size (SCALES), and their mirror images
(SCALE_H_FLIP). All boxes are brought into the frame of the first pass; per-class NMS over all of them and a cut at the
best DETECTIONS_PER_IMG follow. The model must have been built with TEST.BBOX_AUG.ENABLED, so that it leaves these last
two steps to this module.

With VOTE each pass makes its own detections, the model suppresses and cuts as usual. Of a further size only the boxes
whose area lies in its SCALE_RANGES count. The boxes of all passes are merged by MERGE_TYPE, and the cut leaves
PRE_NMS_TOP_N.

`make_bbox_aug(cfg)` turns the config into plain settings, `aug_passes` lists the passes, `merge_passes` merges.
"""

import collections

from fcos_core.config.heads import head_section
from fcos_core.data.transforms import Compose, Normalize, RandomHorizontalFlip, Resize, ToTensor
from fcos_core.structures.bounding_box import FLIP_LEFT_RIGHT, BoxList
from fcos_core.structures.box_voting import bbox_vote, soft_bbox_vote
from fcos_core.structures.boxlist_ops import boxlist_ml_nms, cat_boxlist
from fcos_core.structures.image_list import to_image_list

from .forward import detect

__all__ = [
    "BBoxAugSettings",
    "AugPass",
    "im_detect_bbox",
    "im_detect_bbox_aug",
    "im_detect_bbox_hflip",
    "im_detect_bbox_scale",
    "keep_areas",
    "keep_best",
    "make_bbox_aug",
    "merge_boxes",
    "merge_passes",
    "aug_passes",
]

BBoxAugSettings = collections.namedtuple(
    "BBoxAugSettings",
    [
        "min_size",  # short side of the first pass, pixels
        "max_size",  # limit of the long side of the first pass
        "h_flip",  # bool: the mirror image of the first pass too
        "scales",  # short sides of the further passes
        "scales_max_size",  # limit of the long side of the further passes
        "small_scales_max_size",  # the same for those below _SMALL_SCALE
        "scale_h_flip",  # bool: the mirror images of the further passes too
        "pixel_mean",
        "pixel_std",
        "to_bgr255",
        "size_divisible",  # padding of the batch
        "nms_thresh",  # IoU of the merging NMS
        "detections_per_img",  # 0: no limit; after a vote, the limit of that
        "merge_type",  # one of MERGE_TYPES
        "vote_thresh",  # IoU from which on boxes vote together
        "score_thresh",  # of the members of a soft vote
        "scale_ranges",  # (), or for each further pass (a, b): keep areas between a^2 and b^2 square pixels
        "amp",  # see forward.autocast
        "channels_last",  # bool
    ],
)

MERGE_TYPES = ("nms", "vote", "soft-vote")

# areas: None, or (a, b) to keep the boxes with area between a^2 and b^2 square pixels of the resized image
AugPass = collections.namedtuple("AugPass", ["min_size", "max_size", "flip", "areas"], defaults=[None])

# With VOTE, further passes below this size keep the limit of the long side of the first pass.
_SMALL_SCALE = 800


def make_bbox_aug(cfg):
    """Settings of multi-scale testing from the config.

    Args:
        cfg: the configuration (TEST.BBOX_AUG, INPUT, DATALOADER.SIZE_DIVISIBILITY, NMS threshold of the head).

    Returns:
        BBoxAugSettings, or None if TEST.BBOX_AUG.ENABLED is False.

    Raises:
        ValueError: no dense head is switched on: there are no boxes to merge; or the keys of the vote make no sense.
    """
    aug = cfg.TEST.BBOX_AUG
    if not aug.ENABLED:
        return None
    head = head_section(cfg)
    _check_vote(aug)
    return BBoxAugSettings(
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        h_flip=aug.H_FLIP,
        scales=tuple(aug.SCALES),
        scales_max_size=aug.MAX_SIZE,
        small_scales_max_size=cfg.INPUT.MAX_SIZE_TEST if aug.VOTE else aug.MAX_SIZE,
        scale_h_flip=aug.SCALE_H_FLIP,
        pixel_mean=tuple(cfg.INPUT.PIXEL_MEAN),
        pixel_std=tuple(cfg.INPUT.PIXEL_STD),
        to_bgr255=cfg.INPUT.TO_BGR255,
        size_divisible=cfg.DATALOADER.SIZE_DIVISIBILITY,
        nms_thresh=head.NMS_TH,
        # Legacy: after a vote there are up to PRE_NMS_TOP_N.
        detections_per_img=head.PRE_NMS_TOP_N if aug.VOTE else cfg.TEST.DETECTIONS_PER_IMG,
        merge_type=aug.MERGE_TYPE if aug.VOTE else "nms",
        vote_thresh=aug.VOTE_TH,
        score_thresh=head.INFERENCE_TH,
        scale_ranges=tuple(aug.SCALE_RANGES) if aug.VOTE else (),
        amp=cfg.SOLVER.AMP,
        channels_last=cfg.MODEL.CHANNELS_LAST,
    )


def _check_vote(aug):
    if aug.VOTE and aug.MERGE_TYPE not in MERGE_TYPES:
        raise ValueError(
            "make_bbox_aug: expected TEST.BBOX_AUG.MERGE_TYPE one of {}, got {}; correct it".format(
                ", ".join(MERGE_TYPES), aug.MERGE_TYPE
            )
        )
    if aug.VOTE and aug.SCALE_RANGES and len(aug.SCALE_RANGES) != len(aug.SCALES):
        raise ValueError(
            "make_bbox_aug: expected a pair in TEST.BBOX_AUG.SCALE_RANGES for each of the {} SCALES, got {}; add the "
            "missing ones, (0, 10000) keeps all boxes".format(len(aug.SCALES), len(aug.SCALE_RANGES))
        )


def aug_passes(settings):
    """The passes of an image, the one that gives the frame first.

    Returns:
        list[AugPass]
    """
    passes = [AugPass(settings.min_size, settings.max_size, False)]
    if settings.h_flip:
        passes.append(passes[0]._replace(flip=True))
    for scale, areas in zip(settings.scales, settings.scale_ranges or [None] * len(settings.scales)):
        small = scale < _SMALL_SCALE
        max_size = settings.small_scales_max_size if small else settings.scales_max_size
        passes.append(AugPass(scale, max_size, False, areas))
        if settings.scale_h_flip:
            passes.append(passes[-1]._replace(flip=True))
    return passes


def im_detect_bbox_aug(model, images, device, settings=None):
    """Detections of a batch over all passes.

    Args:
        model (nn.Module): in eval mode on ``device``, built with TEST.BBOX_AUG.ENABLED.
        images (sequence of PIL images): RGB, as the data set reads them.
        device (torch.device)
        settings (BBoxAugSettings): from `make_bbox_aug`.

    Returns:
        list[BoxList]: one per image, in the frame of the first pass, fields ``scores`` and ``labels``.
    """
    settings = _given(settings)
    by_pass = [run_pass(model, images, device, settings, one_pass) for one_pass in aug_passes(settings)]
    return [merge_passes(boxlists, settings) for boxlists in zip(*by_pass)]


def run_pass(model, images, device, settings, aug_pass):
    """One pass over a batch: list[BoxList] in the frames of the resized images, mirrored back if they were mirrored."""
    transforms = [Resize(aug_pass.min_size, aug_pass.max_size)]
    if aug_pass.flip:
        transforms.append(RandomHorizontalFlip(1.0))
    transforms += [ToTensor(), Normalize(settings.pixel_mean, settings.pixel_std, to_bgr255=settings.to_bgr255)]
    transform = Compose(transforms)
    tensors = [transform(image, _no_boxes(image))[0] for image in images]
    batch = to_image_list(tensors, settings.size_divisible)
    boxlists = detect(model, batch, device, settings.amp, settings.channels_last)
    if aug_pass.areas:
        boxlists = [keep_areas(boxlist, *aug_pass.areas) for boxlist in boxlists]
    return [boxlist.transpose(FLIP_LEFT_RIGHT) for boxlist in boxlists] if aug_pass.flip else list(boxlists)


def keep_areas(boxlist, min_scale, max_scale):
    """The boxes of (inclusive) area strictly between min_scale^2 and max_scale^2, square pixels of the boxes' frame."""
    area = boxlist.area()
    return boxlist[(area > min_scale**2) & (area < max_scale**2)]


def _no_boxes(image):
    """The transforms change image and target together; there is no target here."""
    return BoxList([], image.size)


def im_detect_bbox(model, images, target_scale, target_max_size, device, settings=None):
    """The plain pass at a given size; see `run_pass`."""
    return run_pass(model, images, device, _given(settings), AugPass(target_scale, target_max_size, False))


def im_detect_bbox_hflip(model, images, target_scale, target_max_size, device, settings=None):
    """The mirrored pass at a given size, its boxes mirrored back; see `run_pass`."""
    return run_pass(model, images, device, _given(settings), AugPass(target_scale, target_max_size, True))


def im_detect_bbox_scale(model, images, target_scale, target_max_size, device, hflip=False, settings=None):
    """The pass of one further size, mirrored or not; see `run_pass`."""
    return run_pass(model, images, device, _given(settings), AugPass(target_scale, target_max_size, hflip))


def _given(settings):
    """The older packages read a global config here; the pixel statistics have to come from somewhere."""
    if settings is None:
        raise ValueError("im_detect_bbox_aug: expected settings, got None; pass settings=make_bbox_aug(cfg)")
    return settings


def merge_passes(boxlists, settings):
    """Merge the boxes of all passes of one image.

    Args:
        boxlists (sequence of BoxList): one per pass, each in its own frame, fields ``scores`` and ``labels``.
        settings (BBoxAugSettings)

    Returns:
        BoxList: in the frame of the first one; after an NMS by ascending index over the passes.
    """
    size = boxlists[0].size
    together = cat_boxlist([boxlist.resize(size).convert("xyxy") for boxlist in boxlists])
    return keep_best(_merge(together, settings), settings.detections_per_img)


def _merge(boxlist, settings):
    return merge_boxes(
        boxlist, settings.merge_type, settings.nms_thresh, settings.vote_thresh, settings.score_thresh
    )


def merge_boxes(boxlist, merge_type, nms_thresh, vote_thresh, score_thresh):
    """Merge overlapping boxes of each class.

    Args:
        boxlist: BoxList with fields "scores" and "labels".
        merge_type: "nms", "vote", or anything else for a soft vote.
        nms_thresh: IoU above which NMS drops a box.
        vote_thresh: IoU from which on boxes vote together.
        score_thresh: of the members of a soft vote.

    Returns:
        BoxList with the same two fields.
    """
    if merge_type == "nms":
        return boxlist_ml_nms(boxlist, nms_thresh)
    given = boxlist.bbox, boxlist.get_field("scores"), vote_thresh, boxlist.get_field("labels")
    if merge_type == "vote":
        boxes, scores, labels = bbox_vote(*given)
    else:
        boxes, scores, labels = soft_bbox_vote(*given, score_thresh=score_thresh)
    result = BoxList(boxes, boxlist.size, mode="xyxy")
    result.add_field("scores", scores)
    result.add_field("labels", labels)
    return result


def keep_best(boxlist, limit):
    """The boxes whose score reaches the ``limit``-th best one; all of them if there are no more, or if limit is 0.

    Legacy: boxes with exactly that score stay together, so there may be more than ``limit``.
    """
    if limit <= 0 or len(boxlist) <= limit:
        return boxlist
    scores = boxlist.get_field("scores")
    return boxlist[scores >= scores.topk(limit)[0][-1]]
