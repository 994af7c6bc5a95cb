"""Comparison of whole models and of heads with their recorded numbers; the tests of each dense head call it."""
import contextlib
import os

import numpy as np
import pytest
import torch

from fcos_core.config import load_config
from fcos_core.modeling.detector import build_detection_model
from fcos_core.modeling.rpn.rpn import build_rpn
from fcos_core.solver import make_lr_scheduler, make_optimizer
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.image_list import ImageList, to_image_list
from tests.golden import recipe

CONFIGS = os.path.join(os.path.dirname(__file__), "..", "..", "configs")
DTYPES = {"f32": torch.float32, "f64": torch.float64}
# losses, samples of maps, gradient norm (median, worst), gradient product, boxes in pixels, scores
EXACT = (1e-10, 1e-9, 1e-9, 1e-6, 1e-6, 2e-4, 1e-7)


@pytest.fixture(autouse=True)
def plain_convolutions():
    """Keep oneDNN and cuDNN out: their float32 convolutions differ from float64 by 15 and 6 times what the recorded
    ones did (median of the gradient norms, R-50), which would hide errors of our own.  No TF32 either."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if hasattr(torch.backends.mkldnn, "flags"):
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        assert not torch.backends.cuda.matmul.allow_tf32
        yield


def make_targets(names):
    targets = []
    for name in names:
        boxes, labels = recipe.boxes_and_labels(name)
        size_name = "A" if name == "extra" and not targets else "B" if name == "extra" else name
        _, height, width = recipe.SIZES[size_name]
        target = BoxList(torch.from_numpy(boxes), (width, height), mode="xyxy")
        target.add_field("labels", torch.from_numpy(labels))
        targets.append(target)
    return targets


def as_numpy(detections):
    return (
        detections.convert("xyxy").bbox.cpu().numpy(),
        detections.get_field("scores").cpu().numpy(),
        detections.get_field("labels").cpu().numpy(),
    )


def config_of(golden):
    variation = [str(v) for v in golden.meta["overrides"]]
    cfg, _ = load_config(os.path.join(CONFIGS, golden.meta["config"].split("@")[0]), variation)
    return cfg


def check_map(golden, key, value, tolerance):
    value = value.detach().double().cpu().numpy()
    assert list(golden[key + "/shape"]) == list(value.shape)
    recipe.assert_close(value.std(), golden[key + "/std"], tolerance, key + " std")
    sample = golden[key + "/sample"]
    recipe.assert_close(value.reshape(-1)[recipe.sample_index(value.size, len(sample))], sample, tolerance, key)


def check_gradients(golden, prefix, named_parameters, tolerances):
    """Norms and products with a fixed direction; gradients that vanish beside the whole one are noise and left out."""
    _, _, median, worst, product, _, _ = tolerances
    gradients = {name: p.grad.double().cpu().numpy() for name, p in named_parameters if p.requires_grad}
    names = [str(n) for n in golden["grad_names"]]
    assert sorted(gradients) == sorted(names)
    recorded = golden[prefix + "grad/l2"]
    norms = np.array([np.linalg.norm(gradients[n]) for n in names])
    counted = recorded > 1e-6 * np.linalg.norm(recorded)
    errors = abs(norms - recorded)[counted] / recorded[counted]
    assert np.median(errors) <= median and errors.max() <= worst, (np.median(errors), errors.max())
    for name, norm, dot, counts in zip(names, recorded, golden[prefix + "grad/dot"], counted):
        if counts:
            mine = (gradients[name] * recipe.noise("grad:" + name, gradients[name].shape)).sum()
            assert abs(mine - dot) <= product * norm, (name, mine, dot, norm)


def runs(names):
    """(file, precision that was recorded, precision to compute in).

    The light variants were recorded in float32 only.  They are computed in float64: a ReLU whose input rounds to the
    other side of zero than it did then changes gradients by more than the rounding of the recorded run.
    """
    result = []
    for name in names:
        golden = recipe.Golden(name + ".npz")
        both = "f64/grad/l2" in golden
        result += [(name, p, p if both else "f64") for p in ("f32", "f64") if p + "/grad/l2" in golden]
    return result


def check_whole_model(name, recorded, computed, tolerances, device="cpu"):
    """Features, head outputs, detections, losses and gradients of the model `name` on the images A and B.

    Args:
        name: file without its ending.
        recorded, computed: "f32" or "f64", see `runs`.
        tolerances: for the float32 record; a tuple like EXACT.
        device: where to compute.
    """
    golden = recipe.Golden(name + ".npz")
    dtype, prefix = DTYPES[computed], recorded + "/"
    tolerances = tolerances if recorded == "f32" else EXACT
    model = recipe.fill(build_detection_model(config_of(golden))).to(device, dtype)
    images = to_image_list([torch.from_numpy(recipe.image(n)).to(device, dtype) for n in ("A", "B")], 32)

    model.eval()
    with torch.no_grad():
        features = model.backbone(images.tensors)
        check_heads(golden, prefix + "eval/", model.rpn.head(features), tolerances[1])
        detections, _ = model.rpn(images, features)
    if prefix + "eval/feat0/shape" in golden:
        for level in range(5):
            check_map(golden, "{}eval/feat{}".format(prefix, level), features[level], tolerances[1])
    for i, found in enumerate(detections):
        wanted = [golden["{}det/img{}/{}".format(prefix, i, k)] for k in ("boxes", "scores", "labels")]
        recipe.assert_same_detections(as_numpy(found), wanted, tolerances[5], tolerances[6])

    model.train()
    features = model.backbone(images.tensors)
    if prefix + "train/head_logits0/shape" in golden:
        with torch.no_grad():
            check_heads(golden, prefix + "train/", model.rpn.head(features), tolerances[1])
    if "bn_after_train/names" in golden and recorded == "f32":
        state = model.state_dict()
        norms = [float(state[str(n)].double().norm()) for n in golden["bn_after_train/names"]]
        recipe.assert_close(norms, golden["bn_after_train/l2"], 1e-5, "BN statistics")
    _, losses = model.rpn(images, features, [target.to(device) for target in make_targets(["A", "B"])])
    assert {prefix + "loss/" + key for key in losses} == {key for key in golden if key.startswith(prefix + "loss/")}
    for key, value in losses.items():
        recipe.assert_close(value.item(), golden[prefix + "loss/" + key], tolerances[0], key)
    sum(losses.values()).backward()
    check_gradients(golden, prefix, model.named_parameters(), tolerances)
    for key in [k for k in golden if k.startswith(prefix + "gradfull/")]:
        gradient = dict(model.named_parameters())[key[len(prefix + "gradfull/") :]].grad.cpu().numpy()
        recipe.assert_close(gradient, golden[key], tolerances[3], key)


def check_heads(golden, prefix, outputs, tolerance):
    """What the head returns: logits, regression and, if it predicts it, centerness."""
    assert (prefix + "head_centerness0/shape" in golden) == (len(outputs) == 3)
    for kind, maps in zip(("logits", "bbox_reg", "centerness"), outputs):
        for level, value in enumerate(maps):
            check_map(golden, "{}head_{}{}".format(prefix, kind, level), value, tolerance)


def check_optimizer_steps(name, tolerance):
    """Parameter groups, learning rates, losses and weights of four steps."""
    golden = recipe.Golden(name + ".npz")
    facts = golden.meta["sgd"]
    cfg = config_of(golden)
    for key in ("BASE_LR", "WARMUP_ITERS"):
        cfg.merge_from_list(["SOLVER." + key, facts[key]])
    cfg.merge_from_list(["SOLVER.STEPS", tuple(facts["STEPS"])])
    model = recipe.fill(build_detection_model(cfg)).train()
    optimizer = make_optimizer(cfg, model)
    scheduler = make_lr_scheduler(cfg, optimizer)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    groups = [[n, g["initial_lr"], g["weight_decay"]] for n, g in zip(trainable, optimizer.param_groups)]
    assert groups == golden.meta["param_groups"]
    images = to_image_list([torch.from_numpy(recipe.image(n)) for n in ("A", "B")], 32)
    history, rates = [], []
    for _ in range(4):
        losses = model(images, make_targets(["A", "B"]))
        history.append([losses[k].item() for k in sorted(losses)])
        rates.append([g["lr"] for g in optimizer.param_groups[:2]])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        scheduler.step()
    recipe.assert_close(rates, golden["f32/sgd/lr_first_two_groups"], 1e-7, "learning rates")
    # The first step must agree to rounding; later ones start from weights that differ by rounding.
    recipe.assert_close(history[0], golden["f32/sgd/losses"][0], tolerance, "losses")
    loose = 1e-2 if "MNV2" in name else 1e-4
    recipe.assert_close(history, golden["f32/sgd/losses"], loose, "losses")
    norms = [p.detach().double().norm().item() for p in model.parameters() if p.requires_grad]
    recipe.assert_close(norms, golden["f32/sgd/param_l2_after"], 1e-5, "weights")


def head_runs(heads):
    """(variant, precision) of the runs of a file of heads that were recorded."""
    variants = sorted(heads.meta["variants"])
    return [(v, p) for v in variants for p in sorted(DTYPES) if "{}/{}/loss_cls".format(v, p) in heads]


def check_head(heads, variant, precision, switches=()):
    """Losses, gradients and detections of the head alone on random features."""
    facts = heads.meta["variants"][variant]
    prefix = "{}/{}/".format(variant, precision)
    dtype = DTYPES[precision]
    cfg, _ = load_config("", list(switches) + [str(v) for v in facts["overrides"]])
    module = recipe.fill(build_rpn(cfg, 64), "rpn.").to(dtype)
    features = []
    for stride in (8, 16, 32, 64, 128):
        shape = (2, 64, -(-192 // stride), -(-224 // stride))
        values = np.random.RandomState(300 + stride).standard_normal(shape).astype(np.float32)
        features.append(torch.from_numpy(values).to(dtype).requires_grad_())
    names = ["extra", "extra"] if facts["targets"] == "extra" else facts["targets"]
    images = ImageList(torch.zeros(2, 3, 192, 224), [(160, 224), (192, 160)])

    module.train()
    _, losses = module(images, features, make_targets(names))
    exact = precision == "f64"
    for key, value in losses.items():
        recipe.assert_close(value.item(), heads[prefix + key], 1e-11 if exact else 1e-6, key)
    sum(losses.values()).backward()
    parameters = dict(module.named_parameters())
    order = [str(n) for n in heads[variant + "/param_names"]]
    gradients = [parameters[n[len("rpn.") :] if n.startswith("rpn.") else n].grad.double().numpy() for n in order]
    norms = heads[prefix + "grad_l2"]
    recipe.assert_close([np.linalg.norm(g) for g in gradients], norms, 1e-9 if exact else 1e-4, "gradient norms")
    norms_of_features = [float(f.grad.double().norm()) for f in features]
    recipe.assert_close(norms_of_features, heads[prefix + "feat_grad_l2"], 1e-9 if exact else 2e-4, "features")
    scales = [parameters["head.scales.{}.scale".format(i)].grad.item() for i in range(5)]
    recipe.assert_close(scales, heads[prefix + "grad_scales"].reshape(-1), 1e-9 if exact else 3e-6, "scale gradients")
    for name, gradient, norm, dot in zip(order, gradients, norms, heads[prefix + "grad_dot"]):
        full = name if name.startswith("rpn.") else "rpn." + name
        mine = (gradient * recipe.noise("grad:" + full, gradient.shape)).sum()
        # The two precisions of the original differ by up to 6e-3 here: the products cancel.
        assert abs(mine - dot) <= (1e-8 if exact else 5e-2) * max(norm, 1e-12), name

    if prefix + "img0/boxes" not in heads:  # recorded for its losses only
        return
    module.eval()
    with torch.no_grad():
        detections, _ = module(images, features)
    for i, found in enumerate(detections):
        recorded = [heads["{}img{}/{}".format(prefix, i, k)] for k in ("boxes", "scores", "labels")]
        recipe.assert_same_detections(as_numpy(found), recorded, 1e-3, 1e-5)
