"""A training step of a dense head does not wait for the GPU."""
import numpy as np
import pytest
import torch

from fcos_core.config import load_config
from fcos_core.modeling.rpn.rpn import build_rpn
from fcos_core.structures.image_list import ImageList
from tests.modeling.test_atss import grid_sizes, needs_dispatch_mode, random_boxlist

HEADS = {
    "FCOS": [],
    "FCOS centre sampling": ["MODEL.FCOS.CENTER_SAMPLING_RADIUS", 1.5],
    "ATSS": [],
    "ATSS SSC": ["MODEL.ATSS.POSITIVE_TYPE", "SSC"],
    "ATSS IoU": ["MODEL.ATSS.POSITIVE_TYPE", "IoU"],
    "ATSS TOPK": ["MODEL.ATSS.POSITIVE_TYPE", "TOPK"],
    "ATSS three": ["MODEL.ATSS.ASPECT_RATIOS", (0.5, 1.0, 2.0)],
    "ATSS point": ["MODEL.ATSS.REGRESSION_TYPE", "POINT"],
    "RETINANET": [],
    "GFL": [],
    "TOOD": [],
}


def make_step(name, device):
    """A function that computes losses and their gradients."""
    head = name.split()[0]
    cfg, _ = load_config("", ["MODEL.{}_ON".format(head), True] + HEADS[name])
    module = build_rpn(cfg, 32).to(device)
    features = [torch.randn(2, 32, *size, device=device) for size in grid_sizes(96, 128)]
    targets = [random_boxlist(np.random.RandomState(n), n).to(device) for n in (3, 5)]
    images = ImageList(torch.zeros(2, 3, 96, 128), [(96, 128), (90, 100)])

    def step():
        _, losses = module(images, features, targets)
        sum(losses.values()).backward()

    return step


@pytest.mark.skipif(
    not torch.cuda.is_available() or not hasattr(torch.cuda, "set_sync_debug_mode"), reason="needs a GPU and torch 1.10"
)
@pytest.mark.parametrize("name", sorted(HEADS))
def test_no_wait_in_a_training_step(name):
    step = make_step(name, "cuda")
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def asked_for(step):
    """Names of the operators of a step whose result, or its size, the host would have to wait for."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.name().split("::")[1].split(".")[0]
            by_mask = name in ("index", "index_put", "index_put_") and any(
                t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
            )
            if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal"):
                found.append(name)
            return function(*args, **(kwargs or {}))

    with Mode():
        step()
    return found


@needs_dispatch_mode
@pytest.mark.parametrize("name", sorted(HEADS))
def test_nothing_to_wait_for_in_a_training_step(name):
    """The same on a CPU: no operator hands a value, or a size that depends on values, to the host."""
    assert asked_for(make_step(name, "cpu")) == []


@needs_dispatch_mode
def test_what_would_have_to_be_waited_for_is_noticed():
    x = torch.rand(5)
    for step in (lambda: x.sum().item(), lambda: x[x > 0.5], lambda: bool((x > 2).any()), lambda: (x > 0.5).nonzero()):
        assert asked_for(step)
