"""Bodies and towers that no file of configs/ has: each builds, trains a step, and detects."""
import pytest
import torch

from fcos_core.layers import DFConv2d
from fcos_core.modeling.detector import build_detection_model
from fcos_core.structures.bounding_box import BoxList
from tests.thin import thin_config

GN = ["MODEL.RESNETS.STEM_FUNC", "StemWithGN", "MODEL.RESNETS.TRANS_FUNC", "BottleneckWithGN", "MODEL.FPN.USE_GN", True,
      "MODEL.GROUP_NORM.NUM_GROUPS", 4]  # fmt: skip
LAST_STAGES = ["MODEL.RESNETS.STAGE_WITH_DCN", (False, True, True, True)]
V2 = ["MODEL.RESNETS.WITH_MODULATED_DCN", True]
MODELS = {
    "R-101": ["MODEL.BACKBONE.CONV_BODY", "R-101-FPN-RETINANET"],
    "R-152": ["MODEL.BACKBONE.CONV_BODY", "R-152-FPN-RETINANET"],
    "GN": GN,
    "GN, ReLU in the pyramid": GN + ["MODEL.FPN.USE_RELU", True],
    "ResNeXt": ["MODEL.RESNETS.NUM_GROUPS", 8, "MODEL.RESNETS.STRIDE_IN_1X1", False],
    "deformable v1": LAST_STAGES,
    "deformable v2": LAST_STAGES + V2,
    "deformable v2 in groups": LAST_STAGES + V2 + ["MODEL.RESNETS.DEFORMABLE_GROUPS", 2],
    "deformable ResNeXt": LAST_STAGES + V2 + ["MODEL.RESNETS.NUM_GROUPS", 4],
    "deformable and GN": LAST_STAGES + GN,
    "deformable tower of FCOS": ["MODEL.FCOS.USE_DCN_IN_TOWER", True],
    "deformable tower of ATSS": ["MODEL.ATSS_ON", True, "MODEL.ATSS.USE_DCN_IN_TOWER", True, "MODEL.ATSS.NUM_CONVS", 1],
    "deformable tower of GFL": ["MODEL.GFL_ON", True, "MODEL.GFL.USE_DCN_IN_TOWER", True, "MODEL.GFL.NUM_CONVS", 1],
    "MobileNetV2": ["MODEL.BACKBONE.CONV_BODY", "MNV2-FPN-RETINANET", "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", 0],
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_step_and_detections(name):
    model = build_detection_model(thin_config(*MODELS[name]))
    deformable = [m for m in model.modules() if isinstance(m, DFConv2d)]
    assert len(deformable) == (2 if "tower" in name else 13 if "deformable" in name else 0)
    for key, value in model.state_dict().items():
        if key.endswith("bn3.weight"):
            value.fill_(0.1)  # constant statistics do not tame a body that was not trained
    image = torch.randn(1, 3, 64, 96)
    target = BoxList([[10, 12, 50, 40], [30, 5, 90, 60]], (96, 64))
    target.add_field("labels", torch.tensor([1, 2]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    before = sum(model(image, [target]).values())
    before.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == [] and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    optimizer.step()
    assert torch.isfinite(before) and before > 0
    with torch.no_grad():
        (found,) = model.eval()(image)
    assert torch.isfinite(found.bbox).all() and found.size == (96, 64)


def test_synchronised_batch_norm_detects_as_batch_norm_does():
    """What MODEL.USE_SYNCBN makes of a model: the same tensors, every BatchNorm replaced, the same detections."""
    plain = build_detection_model(thin_config(*MODELS["MobileNetV2"])).eval()
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        (wanted,) = plain(image)
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(plain)
    kinds = [type(m) for m in synchronised.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert set(kinds) == {torch.nn.SyncBatchNorm}
    assert len(kinds) == 1 + 2 + 16 * 3  # of the stem, of the block of two convolutions, of those of three
    assert list(synchronised.state_dict()) == list(state)
    try:
        with torch.no_grad():
            (found,) = synchronised.eval()(image)
    except ValueError as error:
        pytest.skip(str(error))  # torch 1.7 wants a GPU even for detections
    assert torch.equal(found.bbox, wanted.bbox)
    assert torch.equal(found.get_field("scores"), wanted.get_field("scores"))
