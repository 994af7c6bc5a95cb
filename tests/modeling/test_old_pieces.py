"""Parts for own heads, and the old ways into the heads: anchors as BoxLists, steps that subclasses override."""
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fcos_core.config import load_config
from fcos_core.layers._utils import _load_C_extensions
from fcos_core.layers.misc import _NewEmptyTensorOp
from fcos_core.layers.sigmoid_focal_loss import _SigmoidFocalLoss
from fcos_core.modeling.balanced_positive_negative_sampler import BalancedPositiveNegativeSampler
from fcos_core.modeling.box_coder import BoxCoder
from fcos_core.modeling.detector import build_detection_model
from fcos_core.modeling.matcher import Matcher
from fcos_core.modeling.poolers import LevelMapper, Pooler, make_pooler
from fcos_core.modeling.rpn.anchor_generator import make_anchor_generator
from fcos_core.modeling.rpn.atss.inference import ATSSPostProcessor
from fcos_core.modeling.rpn.atss.loss import ATSSLossComputation
from fcos_core.modeling.rpn.fcos.inference import FCOSPostProcessor
from fcos_core.modeling.rpn.fcos.loss import FCOSLossComputation, get_num_gpus, reduce_sum
from fcos_core.modeling.rpn.fcos.targets import size_ranges
from fcos_core.modeling.rpn.inference import RPNPostProcessor, make_rpn_postprocessor
from fcos_core.modeling.rpn.levels import flatten_levels
from fcos_core.modeling.rpn.loss import RPNLossComputation, generate_rpn_labels, make_rpn_loss_evaluator
from fcos_core.modeling.rpn.retinanet.inference import RetinaNetPostProcessor
from fcos_core.modeling.rpn.retinanet.loss import RetinaNetLossComputation, generate_retinanet_labels
from fcos_core.modeling.rpn.rpn import build_rpn
from fcos_core.modeling.rpn.utils import concat_box_prediction_layers, permute_and_flatten
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.boxlist_ops import boxlist_nms
from fcos_core.structures.image_list import ImageList
from tests.golden import recipe

GOLDEN = recipe.Golden("old_pieces.npz")
GRIDS = [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)]
IMAGES = ImageList(torch.zeros(2, 3, 96, 128), [(96, 128), (90, 100)])


def boxes_of(k, width, height):
    boxlist = BoxList(torch.from_numpy(GOLDEN["pooler/boxes{}".format(k)]), (width, height))
    return boxlist


def test_pooler_golden():
    features = [
        torch.from_numpy(np.random.RandomState(30 + i).standard_normal((2, 2, 64 >> i, 80 >> i)).astype(np.float32))
        for i in range(4)
    ]
    boxes = [boxes_of(k, 320, 256) for k in (0, 1)]
    pooler = Pooler((7, 7), (0.25, 0.125, 0.0625, 0.03125), 2)
    levels = pooler.map_levels(boxes)
    assert levels.dtype == torch.int64 and levels.tolist() == GOLDEN["pooler/levels"].tolist()
    recipe.assert_close(pooler(features, boxes), GOLDEN["pooler/out"], 1e-5, "features")
    single = Pooler(7, (0.25,), 2)(features[:1], boxes)
    recipe.assert_close(single[levels == 0], pooler(features, boxes)[levels == 0], 1e-6, "one level")


def test_pooler_of_a_config_and_level_bounds():
    pooler = make_pooler(load_config()[0], "ROI_BOX_HEAD")
    assert pooler.output_size == (14, 14) and len(pooler.poolers) == 1
    sides = [1.0, 111.9, 112.0, 224.0, 447.0, 448.0, 5000.0]
    boxes = BoxList([[0, 0, side - 1, side - 1] for side in sides], (9999, 9999))
    assert LevelMapper(2, 5)([boxes]).tolist() == [0, 0, 1, 2, 2, 3, 3]


def test_sampler_keeps_the_share_and_fills_with_negatives():
    labels = torch.tensor([1] * 30 + [0] * 200 + [-1] * 20)
    few = torch.tensor([1] * 3 + [0] * 10)
    positives, negatives = BalancedPositiveNegativeSampler(64, 0.25)([labels, few])
    assert [int(mask.sum()) for mask in positives + negatives] == [16, 3, 48, 10]
    assert (labels[positives[0]] == 1).all() and (labels[negatives[0]] == 0).all()
    assert positives[0].dtype == torch.bool and positives[0].shape == labels.shape


def test_low_quality_matches_in_place():
    matrix = torch.tensor([[0.1, 0.25, 0.0], [0.6, 0.2, 0.3]])
    matcher = Matcher(0.5, 0.3)
    plain, best = matcher(matrix), matrix.max(dim=0)[1]
    assert plain.tolist() == [1, -1, -2]
    matcher.set_low_quality_matches_(plain, best, matrix)
    assert plain.tolist() == Matcher(0.5, 0.3, True)(matrix).tolist() == [1, 0, -2]


def test_rows_of_maps():
    box_cls = [torch.randn(2, 3 * 4, *grid) for grid in GRIDS[1:3]]
    regression = [torch.randn(2, 3 * 4, *grid) for grid in GRIDS[1:3]]
    level = permute_and_flatten(box_cls[0], 2, 3, 4, 6, 8)
    assert level.shape == (2, 6 * 8 * 3, 4)
    assert torch.equal(level[1, (2 * 8 + 5) * 3 + 1], box_cls[0][1, 4:8, 2, 5])
    rows, boxes = concat_box_prediction_layers(box_cls, regression)
    assert rows.shape == (2 * (48 + 12) * 3, 4) and boxes.shape == rows.shape
    assert torch.equal(rows[: 48 * 3], level[0]) and torch.equal(rows[60 * 3 : 108 * 3], level[1])


def test_small_old_names():
    x = torch.zeros(0, 3, requires_grad=True)
    empty = _NewEmptyTensorOp.apply(x, (0, 5, 2))
    empty.sum().backward()
    assert empty.shape == (0, 5, 2) and x.grad.shape == (0, 3)
    losses = _SigmoidFocalLoss.apply(torch.zeros(2, 3), torch.tensor([1, 0]), 2.0, 0.25)
    assert losses.shape == (2, 3) and losses[0, 0].item() == pytest.approx(0.25 * 0.25 * np.log(2))
    assert callable(_load_C_extensions().nms)
    assert get_num_gpus() == 1 and reduce_sum(torch.ones(2)).tolist() == [1, 1]


# ---------------------------------------------------------------------------------------------------- proposals


def rpn(*options):
    pyramid = ["MODEL.RPN.USE_FPN", True, "MODEL.RPN.ANCHOR_STRIDE", (8, 16, 32, 64, 128)]
    cfg, _ = load_config("", pyramid + list(options))
    anchors = make_anchor_generator(cfg)(IMAGES, [torch.zeros(2, 1, *grid) for grid in GRIDS])
    generator = torch.Generator().manual_seed(1)
    objectness = [torch.randn(2, 3, *grid, generator=generator).requires_grad_() for grid in GRIDS]
    regression = [(0.3 * torch.randn(2, 12, *grid, generator=generator)).requires_grad_() for grid in GRIDS]
    return cfg, anchors, objectness, regression


def test_proposals_are_the_best_of_each_level_then_of_all():
    cfg, anchors, objectness, regression = rpn(
        "MODEL.RPN.PRE_NMS_TOP_N_TEST", 50, "MODEL.RPN.POST_NMS_TOP_N_TEST", 20, "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST", 30
    )
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    found = make_rpn_postprocessor(cfg, coder, False).eval()(anchors, objectness, regression)
    for image in (0, 1):
        candidates = []
        for level in range(5):
            scores = flatten_levels([objectness[level]], 3)[image, :, 0].sigmoid()
            codes = flatten_levels([regression[level]], 3)[image]
            order = scores.argsort(descending=True)[:50]
            anchor = anchors[image][level]
            boxes = BoxList(coder.decode(codes[order], anchor.bbox[order]).detach(), anchor.size)
            boxes.add_field("objectness", scores[order])
            boxes = boxes.clip_to_image(remove_empty=False)
            candidates.append(boxlist_nms(boxes, 0.7, 20, "objectness").get_field("objectness"))
        wanted = torch.cat(candidates).sort(descending=True)[0][:30]
        assert torch.equal(found[image].get_field("objectness"), wanted)
        assert found[image].size == anchors[image][0].size


def test_proposals_while_training_are_cut_over_the_batch_and_hold_the_truth():
    _, anchors, objectness, regression = rpn()
    post = RPNPostProcessor(50, 20, 0.7, 0, fpn_post_nms_top_n=30).train()
    targets = [BoxList([[10, 10, 50, 60]], (128, 96)), BoxList([], (100, 90))]
    found = post(anchors, objectness, regression, targets)
    assert sum(len(boxlist) for boxlist in found) == 30 + 1
    assert found[0].bbox[-1].tolist() == [10, 10, 50, 60] and found[0].get_field("objectness")[-1] == 1


def test_proposal_losses_are_the_written_formulas():
    cfg, anchors, objectness, regression = rpn("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**6)  # all that are eligible
    targets = [BoxList([[10, 10, 50, 60], [70, 20, 100, 90]], (128, 96)), BoxList([], (100, 90))]
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    losses = make_rpn_loss_evaluator(cfg, coder)(anchors, objectness, regression, targets)
    matcher = Matcher(0.7, 0.3, True)
    bce, box, count = 0.0, 0.0, 0
    for image in (0, 1):
        flat = torch.cat([level.bbox for level in anchors[image]])
        visible = torch.cat([level.get_field("visibility") for level in anchors[image]])
        boxes = targets[image].bbox
        matches = matcher.match(flat, boxes[None], torch.ones(1, len(boxes), dtype=torch.bool))[0]
        logits = torch.cat([flatten_levels([level], 3)[image, :, 0] for level in objectness])
        codes = torch.cat([flatten_levels([level], 3)[image] for level in regression])
        for anchor in range(len(flat)):
            if not visible[anchor] or matches[anchor] == -2:
                continue
            count += 1
            label = float(matches[anchor] >= 0)
            bce += F.binary_cross_entropy_with_logits(logits[anchor], torch.tensor(label)).item()
            if label:
                wanted = coder.encode(boxes[matches[anchor]], flat[anchor])
                distance = (codes[anchor] - wanted).abs()
                box += torch.where(distance < 1 / 9, 4.5 * distance**2, distance - 0.5 / 9).sum().item()
    assert losses[0].item() == pytest.approx(bce / count, rel=1e-4)
    assert losses[1].item() == pytest.approx(box / count, rel=1e-4) and box > 0
    sum(losses).backward()
    assert all(torch.isfinite(m.grad).all() for m in objectness + regression)


def test_own_labels_and_fields():
    def labels_of(matched):
        return matched.get_field("labels").float() * (matched.get_field("matched_idxs") >= 0)

    cfg, anchors, _, _ = rpn()
    loss = RPNLossComputation(Matcher(0.5, 0.4, True), None, BoxCoder((1.0, 1.0, 1.0, 1.0)), labels_of)
    loss.copied_fields = ["labels"]
    loss.discard_cases = []
    target = BoxList([[10, 10, 50, 60]], (128, 96))
    target.add_field("labels", torch.tensor([7]))
    labels, encoded = loss.prepare_targets([anchors[0][2]], [target])
    assert set(labels[0].tolist()) == {0.0, 7.0} and torch.isfinite(encoded[0]).all()
    matched = loss.match_targets_to_anchors(anchors[0][2], target, ["labels"])
    assert generate_rpn_labels(matched).tolist() == (labels[0] == 7).tolist()
    assert generate_retinanet_labels(target).tolist() == [7]


# ------------------------------------------------------------------------------------- old ways into the heads


def head(name, *options):
    small = ["MODEL.{}.NUM_CLASSES".format(name), 5, "MODEL.{}.NUM_CONVS".format(name), 1]
    small += ["MODEL.RETINANET.SCALES_PER_OCTAVE", 1]
    cfg = load_config("", ["MODEL.{}_ON".format(name), True] + small + list(options))[0]
    module = build_rpn(cfg, 32)
    module.box_selector_test.pre_nms_thresh = 0.001
    torch.nn.init.normal_(module.head.cls_logits.weight, std=0.1)
    features = [torch.randn(2, 32, *grid) for grid in GRIDS]
    return cfg, module, features


def some_targets():
    targets = [BoxList([[10, 10, 50, 60], [20, 5, 120, 90]], (128, 96)), BoxList([[3, 4, 90, 80]], (100, 90))]
    for target in targets:
        target.add_field("labels", torch.arange(1, len(target) + 1))
    return targets


def assert_same(found, others):
    for one, other in zip(found, others):
        assert len(one) == len(other) > 0 and one.size == other.size
        order = other.get_field("scores").argsort(descending=True)
        recipe.assert_close(one.bbox, other.bbox[order], 1e-6, "boxes")
        recipe.assert_close(one.get_field("scores"), other.get_field("scores")[order], 1e-6, "scores")


@pytest.mark.parametrize("name", ["ATSS", "RETINANET"])
def test_anchors_image_by_image(name):
    _, module, features = head(name)
    outputs = module.head(features)
    anchors = module.anchor_generator(IMAGES, features)
    levels = module.anchor_generator.level_anchors(GRIDS)
    if name == "ATSS":
        old = module.loss_evaluator(*outputs, some_targets(), anchors)
        new = module.loss_evaluator(*outputs, some_targets(), levels)
        found = module.box_selector_test(*outputs, anchors)
        wanted = module.box_selector_test(*outputs, levels, IMAGES.image_sizes)
        both = [module.loss_evaluator.prepare_targets(some_targets(), form) for form in (anchors, levels)]
    else:
        old = module.loss_evaluator(anchors, *outputs, some_targets())
        new = module.loss_evaluator(levels, *outputs, some_targets())
        found = module.box_selector_test(anchors, *outputs)
        wanted = module.box_selector_test(levels, *outputs, IMAGES.image_sizes)
        flat = [BoxList(torch.cat([level.bbox for level in image]), image[0].size) for image in anchors]
        both = [module.loss_evaluator.prepare_targets(form, some_targets()) for form in (flat, levels)]
        assert module.box_selector_test.add_gt_proposals(found, None) is found
    assert [loss.item() for loss in old] == [loss.item() for loss in new]
    assert_same(found, wanted)
    for one, other in zip(*both):
        assert all(torch.equal(a, b) for a, b in zip(one, other))


class _Counted(object):
    """Steps that count their calls and do what they did."""

    calls = 0

    def forward_for_single_feature_map(self, *maps):
        type(self).calls += 1
        return super(_Counted, self).forward_for_single_feature_map(*maps)

    def select_over_all_levels(self, boxlists):
        type(self).calls += 100
        return super(_Counted, self).select_over_all_levels(boxlists)


@pytest.mark.parametrize(
    "name,base", [("FCOS", FCOSPostProcessor), ("ATSS", ATSSPostProcessor), ("RETINANET", RetinaNetPostProcessor)]
)
def test_steps_that_are_overridden_are_taken_and_give_the_same(name, base):
    _, module, features = head(name)
    module.eval()
    with torch.no_grad():
        wanted, _ = module(IMAGES, features)
        module.box_selector_test.__class__ = type("Mine", (_Counted, base), {"calls": 0})
        found, _ = module(IMAGES, features)
    assert type(module.box_selector_test).calls == 100 + 5
    assert_same(wanted, found)


def test_an_own_assignment_of_locations_is_taken():
    class Mine(FCOSLossComputation):
        def compute_targets_for_locations(self, locations, targets, object_sizes_of_interest):
            assert self.num_points_per_level == [h * w for h, w in GRIDS]
            return super(Mine, self).compute_targets_for_locations(locations, targets, object_sizes_of_interest)

    class None_(Mine):
        def compute_targets_for_locations(self, locations, targets, object_sizes_of_interest):
            labels, distances = super(None_, self).compute_targets_for_locations(
                locations, targets, object_sizes_of_interest
            )
            return [torch.zeros_like(label) for label in labels], distances

    class Surrounded(FCOSLossComputation):
        def prepare_targets(self, points, targets):
            labels, distances = super(Surrounded, self).prepare_targets(points, targets)
            return labels, distances

    for radius in (0.0, 1.5):
        cfg, module, features = head("FCOS", "MODEL.FCOS.CENTER_SAMPLING_RADIUS", radius)
        arguments = [module.compute_locations(features)] + list(module.head(features)) + [some_targets()]
        wanted = [loss.item() for loss in module.loss_evaluator(*arguments)]
        for kind in (Mine, Surrounded):
            assert [loss.item() for loss in kind(cfg)(*arguments)] == wanted
        without = None_(cfg)(*arguments)
        assert without[1].item() == without[2].item() == 0 and wanted[1] > 0
    with pytest.raises(ValueError, match="expected object_sizes_of_interest to hold rows of size_ranges.5."):
        points = torch.cat(arguments[0])
        module.loss_evaluator.compute_targets_for_locations(points, some_targets(), points)


def test_the_region_of_center_sampling():
    cfg, module, features = head("FCOS")
    locations = torch.cat(module.compute_locations(features))
    counts = [h * w for h, w in GRIDS]
    inside = module.loss_evaluator.get_sample_region(
        torch.tensor([[10.0, 10.0, 50.0, 60.0], [0.0, 0.0, 5.0, 5.0]]), [8, 16, 32, 64, 128], counts,
        locations[:, 0], locations[:, 1], radius=1.5,
    )  # fmt: skip
    assert inside.shape == (len(locations), 2)
    first = locations[: counts[0]]
    near = ((first[:, 0] - 30).abs() < 12) & ((first[:, 1] - 35).abs() < 12)
    assert torch.equal(inside[: counts[0], 0], near) and near.any()
    assert size_ranges(5)[1] == [64, 128]


def test_hooks_that_nothing_calls_are_refused():
    class Region(FCOSLossComputation):
        def get_sample_region(self, *arguments):
            return None

    class Giou(ATSSLossComputation):
        def GIoULoss(self, *arguments):
            return None

    cfg = load_config("", ["MODEL.ATSS_ON", True])[0]
    with pytest.raises(TypeError, match="get_sample_region .* override compute_targets_for_locations"):
        Region(cfg)
    with pytest.raises(TypeError, match="GIoULoss .* override __call__"):
        Giou(cfg, None)


def test_an_own_assignment_of_anchors_is_taken():
    class Mine(ATSSLossComputation):
        def prepare_targets(self, targets, anchors):
            labels, encoded = super(Mine, self).prepare_targets(targets, anchors)
            return [label * self.factor for label in labels], encoded

    cfg, module, features = head("ATSS")
    outputs = module.head(features)
    levels = module.anchor_generator.level_anchors(GRIDS)
    wanted = module.loss_evaluator(*outputs, some_targets(), levels)
    mine = Mine(cfg, module.loss_evaluator.box_coder)
    mine.factor = 1
    for one, other in zip(mine(*outputs, some_targets(), levels), wanted):
        assert one.item() == pytest.approx(other.item(), rel=1e-5)
    mine.factor = 0
    assert mine(*outputs, some_targets(), levels)[1].item() == 0


def test_an_own_assignment_of_retinanet_is_taken():
    class Mine(RetinaNetLossComputation):
        def prepare_targets(self, anchors, targets):
            labels, encoded = super(Mine, self).prepare_targets(anchors, targets)
            return [label.float() * self.factor for label in labels], encoded

    class Matching(RetinaNetLossComputation):
        def match_targets_to_anchors(self, anchor, target, copied_fields=()):
            return target

    _, module, features = head("RETINANET")
    evaluator = module.loss_evaluator
    parts = (evaluator.proposal_matcher, evaluator.box_coder, None, evaluator.box_cls_loss_func, 0.11, 4.0)
    anchors, outputs = module.anchor_generator.level_anchors(GRIDS), module.head(features)
    wanted = [loss.item() for loss in evaluator(anchors, *outputs, some_targets())]
    mine = Mine(*parts)
    mine.factor = 1
    assert [loss.item() for loss in mine(anchors, *outputs, some_targets())] == pytest.approx(wanted, rel=1e-6)
    mine.factor = 0
    assert mine(anchors, *outputs, some_targets())[1].item() == 0 < wanted[1]
    with pytest.raises(TypeError, match="match_targets_to_anchors .* override prepare_targets"):
        Matching(*parts)


def test_labels_of_retinanet_come_from_the_given_function():
    cfg, module, features = head("RETINANET")
    evaluator = module.loss_evaluator
    mine = RetinaNetLossComputation(
        evaluator.proposal_matcher, evaluator.box_coder, lambda target: target.get_field("other"),
        evaluator.box_cls_loss_func, 0.11, 4.0,
    )  # fmt: skip
    targets = some_targets()
    for target in targets:
        target.add_field("other", target.get_field("labels"))
        target.add_field("labels", torch.zeros(len(target)))
    anchors, outputs = module.anchor_generator.level_anchors(GRIDS), module.head(features)
    wanted = evaluator(anchors, *outputs, some_targets())
    assert [x.item() for x in mine(anchors, *outputs, targets)] == [x.item() for x in wanted]


# --------------------------------------------------------------------------------------- what is not carried


@pytest.mark.parametrize(
    "options,sentence",
    [
        (["MODEL.MASK_ON", True], "MODEL.MASK_ON True: masks and keypoints are not predicted .* to False"),
        (["MODEL.KEYPOINT_ON", True], "MODEL.KEYPOINT_ON True: masks and keypoints are not predicted"),
        (["MODEL.BACKBONE.CONV_BODY", "FBNet"], "FBNet is not carried .* MNV2-FPN-RETINANET"),
        (["MODEL.ROI_HEADS.USE_FPN", True], "two-stage detectors .* are not carried .* MODEL.RPN_ONLY to True"),
        (["MODEL.FCOS_ON", False, "MODEL.BACKBONE.CONV_BODY", "R-50-FPN"], "two-stage detectors, .* are not carried"),
    ],
)
def test_a_model_that_is_not_carried_says_so(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_detection_model(load_config("", options)[0])


def test_a_file_of_a_two_stage_model_says_so(tmp_path):
    """FCOS is on by default, so it would be an FCOS."""
    path = tmp_path / "a.yaml"
    text = "MODEL:\n  BACKBONE:\n    CONV_BODY: R-50-C4\n  RPN:\n    PRE_NMS_TOP_N_TEST: 1000\n"
    path.write_text(text)
    with pytest.raises(ValueError, match="two-stage detectors .* are not carried .* name it there"):
        load_config(str(path))
    assert load_config(str(path), ["MODEL.FCOS_ON", True])[0].MODEL.RPN.PRE_NMS_TOP_N_TEST == 1000
    path.write_text(text + "  RETINANET_ON: True\n")
    assert load_config(str(path))[0].MODEL.RETINANET_ON
