"""Multi-scale and flip testing with a model whose detections are known."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fcos_core.config import cfg as default_cfg
from fcos_core.engine.bbox_aug import (
    AugPass,
    aug_passes,
    im_detect_bbox,
    im_detect_bbox_aug,
    im_detect_bbox_hflip,
    im_detect_bbox_scale,
    keep_best,
    make_bbox_aug,
    merge_passes,
)
from fcos_core.engine.bbox_aug_vote import im_detect_bbox_aug_vote, remove_boxes
from fcos_core.engine.forward import evaluation_mode
from fcos_core.structures.bounding_box import BoxList
from tests.thin import thin_config

CPU = torch.device("cpu")


def settings(**changes):
    cfg = default_cfg.clone()
    cfg.TEST.BBOX_AUG.ENABLED = True
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 100, 300
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.TO_BGR255 = [0.0, 0.0, 0.0], False
    return make_bbox_aug(cfg)._replace(**changes)


def boxlist(rows, size):
    """rows: (x1, y1, x2, y2, score, label)"""
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    result = BoxList(rows[:, :4], size)
    result.add_field("scores", rows[:, 4])
    result.add_field("labels", rows[:, 5].long())
    return result


def picture(width=200, height=100, box=(20, 30, 60, 70)):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[box[1] : box[3] + 1, box[0] : box[2] + 1] = 255
    return Image.fromarray(pixels)


class BrightBox(nn.Module):
    """Detects the bounding box of the bright pixels; the score tells the passes apart."""

    def __init__(self):
        super(BrightBox, self).__init__()
        self.sizes, self.calls = [], 0

    def forward(self, images):
        self.calls += 1
        results = []
        for image, (h, w) in zip(images.tensors, images.image_sizes):
            self.sizes.append((w, h))
            ys, xs = torch.nonzero(image[0, :h, :w] > 0.5, as_tuple=True)
            results.append(boxlist([[xs.min(), ys.min(), xs.max(), ys.max(), 1 - 0.1 * self.calls, 1]], (w, h)))
        return results


def test_passes_in_order():
    assert aug_passes(settings()) == [AugPass(100, 300, False)]
    every = settings(h_flip=True, scales=(80, 160), scale_h_flip=True)
    assert aug_passes(every) == [
        AugPass(100, 300, False),
        AugPass(100, 300, True),
        AugPass(80, 4000, False),
        AugPass(80, 4000, True),
        AugPass(160, 4000, False),
        AugPass(160, 4000, True),
    ]
    assert [p.flip for p in aug_passes(settings(scales=(80,), h_flip=True))] == [False, True, False]


def test_passes_of_a_vote():
    cfg = default_cfg.clone()
    aug = cfg.TEST.BBOX_AUG
    aug.ENABLED, aug.VOTE, aug.SCALE_H_FLIP, aug.SCALES = True, True, True, (400, 800)
    aug.SCALE_RANGES = ((96, 10000), (0, 64))
    assert aug_passes(make_bbox_aug(cfg)) == [
        AugPass(800, 1333, False),
        AugPass(400, 1333, False, (96, 10000)),
        AugPass(400, 1333, True, (96, 10000)),
        AugPass(800, 4000, False, (0, 64)),
        AugPass(800, 4000, True, (0, 64)),
    ]
    aug.SCALE_RANGES = ()
    assert [p.areas for p in aug_passes(make_bbox_aug(cfg))] == [None] * 5
    aug.SCALE_RANGES = ((0, 64),)
    with pytest.raises(ValueError, match="for each of the 2 SCALES, got 1"):
        make_bbox_aug(cfg)
    aug.VOTE = False
    assert [p.areas for p in aug_passes(make_bbox_aug(cfg))] == [None] * 5


def test_settings_of_a_vote():
    cfg = default_cfg.clone()
    cfg.TEST.BBOX_AUG.ENABLED = True
    assert make_bbox_aug(cfg).merge_type == "nms"
    cfg.TEST.BBOX_AUG.VOTE = True
    cfg.MODEL.ATSS_ON, cfg.MODEL.ATSS.INFERENCE_TH, cfg.MODEL.ATSS.PRE_NMS_TOP_N = True, 0.1, 500
    made = make_bbox_aug(cfg)
    assert (made.merge_type, made.vote_thresh, made.score_thresh, made.detections_per_img) == ("vote", 0.66, 0.1, 500)
    cfg.TEST.BBOX_AUG.MERGE_TYPE = "average"
    with pytest.raises(ValueError, match="nms, vote, soft-vote, got average"):
        make_bbox_aug(cfg)


def test_boxes_of_other_areas_are_left_out():
    rows = [[0, 0, 49, 49, 0.9, 1], [0, 0, 9, 9, 0.8, 1], [0, 0, 79, 79, 0.7, 1], [0, 0, 59, 59, 0.6, 1]]
    kept = remove_boxes([boxlist(rows, (100, 100))], 50, 80)[0]
    assert kept.get_field("scores").tolist() == pytest.approx([0.6])  # both bounds are outside
    with evaluation_mode(BrightBox()) as model:
        given = settings(scales=(80, 160), scale_ranges=((0, 40), (0, 40)), nms_thresh=0.0)
        (seen,) = im_detect_bbox_aug_vote(model, (picture(),), CPU, given)
    assert len(seen) == 2  # 41 x 41 at 100, 33 x 33 at 80, 65 x 65 at 160


@pytest.mark.parametrize("merge_type,number", [("nms", 2), ("vote", 2), ("soft-vote", 3)])
def test_merging_by_vote(merge_type, number):
    first = boxlist([[10, 10, 49, 49, 0.6, 1], [60, 60, 90, 90, 0.5, 2]], (100, 100))
    second = boxlist([[20, 20, 107, 99, 0.4, 1]], (200, 200))
    merged = merge_passes([first, second], settings(merge_type=merge_type, vote_thresh=0.66, score_thresh=0.01))
    assert len(merged) == number and merged.size == (100, 100)
    best = merged[merged.get_field("scores") == 0.6]
    right = 49 if merge_type == "nms" else (49 * 0.6 + 53.5 * 0.4)
    assert best.bbox[0].tolist() == pytest.approx([10, 10, right, 49 if merge_type == "nms" else 49.2], abs=1e-3)
    assert set(merged.get_field("labels").tolist()) == {1, 2}


def test_settings_from_the_config():
    cfg = default_cfg.clone()
    assert make_bbox_aug(cfg) is None
    cfg.TEST.BBOX_AUG.ENABLED = True
    cfg.TEST.BBOX_AUG.SCALES = (400, 1200)
    cfg.MODEL.FCOS.NMS_TH = 0.55
    made = make_bbox_aug(cfg)
    assert made.nms_thresh == 0.55 and made.scales == (400, 1200) and made.scales_max_size == 4000
    assert (made.min_size, made.max_size, made.detections_per_img) == (800, 1333, 100)
    cfg.MODEL.FCOS_ON = False
    with pytest.raises(ValueError, match="expected one of .*MODEL.FCOS_ON"):
        make_bbox_aug(cfg)


@pytest.mark.parametrize("size", [(200, 100), (150, 250)])
def test_every_pass_finds_the_box_in_the_frame_of_the_first(size):
    image = picture(*size)
    # The mirrored and resized passes see other pixels, and their boxes must come back to the same place.
    with evaluation_mode(BrightBox()) as model:
        every = settings(h_flip=True, scales=(80, 160, 200), scale_h_flip=True, nms_thresh=0.0)
        (together,) = im_detect_bbox_aug(model, (image,), CPU, every)
    width, height = together.size
    assert min(width, height) == 100 and len(together) == 8 and model.calls == 8
    expected = torch.tensor([20.0, 30.0, 60.0, 70.0]) * torch.tensor([width / size[0], height / size[1]] * 2)
    assert (together.bbox - expected).abs().max() <= 2.0  # resizing blurs the border
    assert together.get_field("scores").tolist() == pytest.approx([1 - 0.1 * k for k in range(1, 9)], abs=1e-6)


def test_merging_keeps_the_best_of_overlapping_boxes():
    with evaluation_mode(BrightBox()) as model:
        (merged,) = im_detect_bbox_aug(model, (picture(),), CPU, settings(h_flip=True, scales=(160,)))
    assert len(merged) == 1 and merged.get_field("scores").item() == pytest.approx(0.9)


def test_a_batch_of_different_pictures():
    images = (picture(), picture(150, 250, (10, 100, 100, 200)))
    with evaluation_mode(BrightBox()) as model:
        first, second = im_detect_bbox_aug(model, images, CPU, settings(h_flip=True))
    assert first.size == (200, 100) and second.size == (100, 166) and len(first) == len(second) == 1
    assert model.sizes == [(200, 100), (100, 166)] * 2


def test_merge_respects_labels_and_frames():
    in_first = boxlist([[10, 10, 49, 49, 0.5, 1]], (100, 100))
    in_second = boxlist([[20, 20, 99, 99, 0.9, 1], [20, 20, 99, 99, 0.8, 2]], (200, 200))
    merged = merge_passes([in_first, in_second], settings(nms_thresh=0.6))
    # The label-1 boxes are the same but for rounding: the better one stays. The label-2 box is another thing.
    assert merged.size == (100, 100)
    assert sorted(zip(merged.get_field("labels").tolist(), merged.get_field("scores").tolist())) == [
        (1, pytest.approx(0.9)),
        (2, pytest.approx(0.8)),
    ]
    assert merged.bbox.tolist() == [[10, 10, 49.5, 49.5]] * 2


def test_merge_without_any_box():
    merged = merge_passes([boxlist([], (100, 100)), boxlist([], (200, 200))], settings())
    assert len(merged) == 0 and merged.size == (100, 100) and merged.has_field("scores")


def test_cut_to_the_best():
    rows = [[10 * k, 0, 10 * k + 5, 5, score, 1] for k, score in enumerate([0.2, 0.9, 0.5, 0.5, 0.7])]
    everything = boxlist(rows, (100, 100))
    assert keep_best(everything, 0) is everything and keep_best(everything, 5) is everything
    assert keep_best(everything, 2).get_field("scores").tolist() == pytest.approx([0.9, 0.7])
    # Legacy: a tie at the limit keeps both
    assert keep_best(everything, 3).get_field("scores").tolist() == pytest.approx([0.9, 0.5, 0.5, 0.7])
    assert len(merge_passes([everything], settings(detections_per_img=2))) == 2


def test_old_names_of_single_passes():
    image, given = picture(), settings()
    with evaluation_mode(BrightBox()) as model:
        (plain,) = im_detect_bbox(model, [image], 100, 300, CPU, settings=given)
        (flipped,) = im_detect_bbox_hflip(model, [image], 100, 300, CPU, settings=given)
        (small,) = im_detect_bbox_scale(model, [image], 50, 300, CPU, hflip=True, settings=given)
        assert plain.bbox.tolist() == flipped.bbox.tolist() == [[20, 30, 60, 70]]
        assert small.size == (100, 50)
        with pytest.raises(ValueError, match="settings=make_bbox_aug"):
            im_detect_bbox(model, [image], 100, 300, CPU)
        with pytest.raises(ValueError, match="settings=make_bbox_aug"):
            im_detect_bbox_aug(model, [image], CPU)


def test_the_real_model_through_all_passes():
    """FCOS leaves NMS and cut to the merging: more boxes than the limit leave a pass, no more leave the merge."""
    from fcos_core.modeling.detector import build_detection_model

    passes = ["TEST.BBOX_AUG.ENABLED", True, "TEST.BBOX_AUG.H_FLIP", True, "TEST.BBOX_AUG.SCALES", (128,)]
    cfg = thin_config("TEST.DETECTIONS_PER_IMG", 20, *passes)
    made = make_bbox_aug(cfg)
    with evaluation_mode(build_detection_model(cfg)) as model:
        (one_pass,) = im_detect_bbox(model, [picture()], 96, 200, CPU, settings=made)
        (merged,) = im_detect_bbox_aug(model, (picture(),), CPU, made)
    assert len(one_pass) > 20 and 0 < len(merged) <= 20
    assert merged.size == one_pass.size == (192, 96)
    assert merged.bbox.min() >= 0 and (merged.bbox[:, 2] <= 192).all() and (merged.bbox[:, 3] <= 96).all()


@pytest.mark.parametrize("merge_type", ["nms", "vote", "soft-vote"])
def test_the_real_atss_through_a_vote(merge_type):
    from fcos_core.modeling.detector import build_detection_model

    passes = ["TEST.BBOX_AUG.ENABLED", True, "TEST.BBOX_AUG.H_FLIP", True, "TEST.BBOX_AUG.SCALES", (128,)]
    passes += ["TEST.BBOX_AUG.VOTE", True, "TEST.BBOX_AUG.MERGE_TYPE", merge_type]
    passes += ["TEST.BBOX_AUG.SCALE_RANGES", ((0, 200),), "MODEL.ATSS_ON", True, "MODEL.ATSS.NUM_CLASSES", 3]
    passes += ["MODEL.ATSS.NUM_CONVS", 1, "MODEL.ATSS.INFERENCE_TH", 0.001]
    cfg = thin_config("TEST.DETECTIONS_PER_IMG", 20, *passes)
    made = make_bbox_aug(cfg)
    with evaluation_mode(build_detection_model(cfg)) as model:
        (one_pass,) = im_detect_bbox(model, [picture()], 96, 200, CPU, settings=made)
        (merged,) = im_detect_bbox_aug(model, (picture(),), CPU, made)
    assert len(one_pass) == 20 and 0 < len(merged) <= 200 and merged.size == one_pass.size == (192, 96)
    assert merged.bbox.min() >= 0 and (merged.bbox[:, 2] <= 192).all() and (merged.bbox[:, 3] <= 96).all()
