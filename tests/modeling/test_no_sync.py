"""A training step of a dense head does not wait for the GPU."""
import numpy as np
import pytest
import torch

from fcos_core.config import load_config
from fcos_core.modeling.rpn.rpn import build_rpn
from fcos_core.structures.image_list import ImageList
from tests.modeling.test_atss import grid_sizes, random_boxlist

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


@pytest.mark.skipif(
    not torch.cuda.is_available() or not hasattr(torch.cuda, "set_sync_debug_mode"), reason="needs a GPU and torch 1.10"
)
@pytest.mark.parametrize("name", sorted(HEADS))
def test_no_wait_in_a_training_step(name):
    head = name.split()[0]
    cfg, _ = load_config("", ["MODEL.{}_ON".format(head), True] + HEADS[name])
    module = build_rpn(cfg, 32).cuda()
    features = [torch.randn(2, 32, *size, device="cuda") for size in grid_sizes(96, 128)]
    targets = [random_boxlist(np.random.RandomState(n), n).to("cuda") for n in (3, 5)]
    images = ImageList(torch.zeros(2, 3, 96, 128), [(96, 128), (90, 100)])

    def step():
        _, losses = module(images, features, targets)
        sum(losses.values()).backward()

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
