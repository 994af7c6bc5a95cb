"""Bodies from torchvision and timm: strides, layouts, freezing, messages, and a detector on top of each."""
import logging
import sys

import pytest
import torch
from torch import nn

from fcos_core.modeling.backbone import build_backbone, library
from fcos_core.modeling.backbone.library import LibraryBody, module_strides
from fcos_core.modeling.detector import build_detection_model
from fcos_core.structures.bounding_box import BoxList
from fcos_core.utils.checkpoint import DetectronCheckpointer
from fcos_core.utils.pixels import IMAGENET_MEAN, IMAGENET_STD, misfit
from tests.thin import thin_config

try:
    import torchvision.models.feature_extraction  # noqa: F401
except ImportError:
    OLD_TORCHVISION = True
else:
    OLD_TORCHVISION = False

needs_extraction = pytest.mark.skipif(OLD_TORCHVISION, reason="this torchvision has no feature extraction")
BODIES = [
    pytest.param("torchvision/shufflenet_v2_x0_5", marks=needs_extraction),
    "timm/mobilenetv3_small_050",
]
IMAGENET = ["INPUT.TO_BGR255", False, "INPUT.PIXEL_MEAN", list(IMAGENET_MEAN), "INPUT.PIXEL_STD", list(IMAGENET_STD)]


def config(body, *options):
    if body.startswith("timm/"):
        pytest.importorskip("timm")
    return thin_config("MODEL.BACKBONE.CONV_BODY", body, *options)


class Net(nn.Module):
    """Three stages with rows first, or without; `widths` of the maps of stride 4, 8, 16, 32."""

    def __init__(self, rows_first=False, depth=4):
        super(Net, self).__init__()
        self.rows_first = rows_first
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.stages = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2, 2)) for _ in range(depth - 1)]
        )
        self.widen = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps[0] = self.widen(maps[0])
        return [m.permute(0, 2, 3, 1) for m in maps] if self.rows_first else dict(enumerate(maps))


def test_maps_of_any_layout_come_channels_first():
    for rows_first in (False, True):
        torch.manual_seed(0)
        network = Net(rows_first)
        body = LibraryBody(network, module_strides(network, "net"))
        assert body.out_channels_per_stage == [5, 4, 4]
        maps = body(torch.ones(2, 3, 96, 160))
        assert [tuple(m.shape) for m in maps] == [(2, 5, 12, 20), (2, 4, 6, 10), (2, 4, 3, 5)]
    with pytest.raises(ValueError, match=r"stride 8, 16 and 32 of .* got \[8, 16\]"):
        LibraryBody(Net(depth=3), {})


@pytest.mark.parametrize("freeze_at,frozen", [
    (-1, []), (1, []), (2, ["stem"]), (3, ["stem", "stages.0", "widen"]),
    (5, ["stem", "stages.0", "stages.1", "stages.2", "widen"]),
])  # fmt: skip
def test_freezing_goes_by_stride(freeze_at, frozen):
    """The first convolution of a stage, which still has the stride before, belongs to its stage."""
    network = Net()
    body = LibraryBody(network, module_strides(network, "net"), freeze_at)
    names = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert {".".join(n.split(".")[: 2 if "stages" in n else 1]) for n in names} == set(frozen)
    body.train()
    for k, stage in enumerate(network.stages):
        assert stage[1].training == ("stages.{}".format(k) not in frozen)
    with pytest.raises(ValueError, match="at most 5 .* got 6"):
        LibraryBody(network, {}, 6)


def test_constant_batch_norm():
    network = Net()
    body = LibraryBody(network, module_strides(network, "net"), 0, freeze_bn=True).train()
    before = {k: v.clone() for k, v in body.state_dict().items()}
    sum(m.sum() for m in body(torch.rand(2, 3, 64, 64))).backward()
    assert all(torch.equal(v, before[k]) for k, v in body.state_dict().items())
    assert [n for n, p in network.named_parameters() if p.grad is None] == [
        "stages.{}.1.{}".format(k, what) for k in range(3) for what in ("weight", "bias")
    ]
    assert body.training and network.stages[0].training


@pytest.mark.parametrize("body", BODIES)
def test_pyramid_of_a_library(body):
    backbone = build_backbone(config(body))
    assert backbone.out_channels == 64
    images = torch.rand(2, 3, 96, 160)
    maps = backbone(images)
    assert [tuple(m.shape) for m in maps] == [(2, 64, -(-96 // s), -(-160 // s)) for s in (8, 16, 32, 64, 128)]
    sum(m.mean() for m in maps).backward()
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert [name for name in trained if dict(backbone.named_parameters())[name].grad is None] == []
    frozen = [name for name, p in backbone.body.named_parameters() if not p.requires_grad]
    assert 0 < len(frozen) < len(trained)  # FREEZE_CONV_BODY_AT is 2
    again = build_backbone(config(body))
    again.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(again.eval()(images), backbone.eval()(images)))


@pytest.mark.parametrize("body", BODIES)
def test_a_detector_with_the_body_of_a_library_trains_and_detects(body):
    model = build_detection_model(config(body, "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", 0))
    target = BoxList([[10, 12, 50, 40]], (96, 64))
    target.add_field("labels", torch.tensor([2]))
    image = torch.randn(1, 3, 64, 96)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = sum(model(image.expand(2, -1, -1, -1), [target, target]).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    with torch.no_grad():
        (found,) = model.eval()(image)
    assert torch.isfinite(found.bbox).all()


@needs_extraction
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "resnet18"])
def test_a_file_of_the_library_fills_its_body(name, tmp_path):
    """MODEL.WEIGHT may be a file that torchvision or timm saved: names without any prefix, and a classifier."""
    theirs = getattr(torchvision.models, name)().state_dict()
    torch.save(theirs, str(tmp_path / "weights.pth"))
    cfg = config("torchvision/" + name)
    model = build_detection_model(cfg)
    DetectronCheckpointer(cfg, model).load(str(tmp_path / "weights.pth"))
    state = model.backbone.body.network.state_dict()
    assert len(state) > 100 and all(torch.equal(value, theirs[key]) for key, value in state.items())


# ------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize("body,words", [
    ("tim/convnext_tiny", ["timm/", "torchvision/", "tim/convnext_tiny"]),
    ("R-50", ["R-50-FPN-RETINANET", "timm/NAME"]),
    pytest.param("torchvision/resnet_50", ["torchvision/resnet50"], marks=needs_extraction),
    pytest.param("torchvision/vit_b_16", ["images of any size"], marks=needs_extraction),
    pytest.param("torchvision/squeezenet1_1", ["stride 8, 16 and 32"], marks=needs_extraction),
    ("timm/convnext_tinny", ["timm/convnext_tiny"]),
    ("timm/vit_tiny_patch16_224", ["stride 8, 16 and 32"]),
])  # fmt: skip
def test_names_that_will_not_do(body, words):
    if body == "torchvision/vit_b_16" and not hasattr(torchvision.models, "vit_b_16"):
        pytest.skip("this torchvision is older than the network")
    with pytest.raises(ValueError) as error:
        build_backbone(config(body))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("body,module,remedy", [
    ("timm/convnext_tiny", "timm", "pip install timm"),
    ("torchvision/resnet50", "torchvision.models.feature_extraction", "torchvision 0.11 or newer"),
])  # fmt: skip
def test_without_the_library(body, module, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ImportError, match=remedy):
        build_backbone(thin_config("MODEL.BACKBONE.CONV_BODY", body))


def test_weights_that_cannot_be_had():
    def fail():
        raise OSError("no network")

    with pytest.raises(RuntimeError, match="pretrained weights of timm/x, got OSError: no network; .*PRETRAINED False"):
        library._make("timm/x", True, fail)
    with pytest.raises(ValueError, match="several maps, got OSError"):
        library._make("timm/x", False, fail)


@pytest.mark.parametrize("options,warned", [([], True), (IMAGENET, False)])
def test_input_that_does_not_fit_pretrained_weights_is_told(options, warned, monkeypatch, caplog):
    network = Net()
    offer = (network, module_strides(network, "net"), IMAGENET_MEAN, IMAGENET_STD)
    monkeypatch.setitem(library._LIBRARIES, "fake", lambda name, pretrained: offer)
    with caplog.at_level(logging.WARNING):
        build_backbone(thin_config("MODEL.BACKBONE.CONV_BODY", "fake/net", "MODEL.BACKBONE.PRETRAINED", True, *options))
    keys = "INPUT.TO_BGR255 False INPUT.PIXEL_MEAN [0.485,0.456,0.406] INPUT.PIXEL_STD [0.229,0.224,0.225]"
    assert (keys in caplog.text) == warned
    caplog.clear()
    build_backbone(thin_config("MODEL.BACKBONE.CONV_BODY", "fake/net"))  # from scratch any input will do
    assert caplog.text == ""


def test_what_input_fits():
    mean, std = [255 * v for v in IMAGENET_MEAN[::-1]], [255 * v for v in IMAGENET_STD[::-1]]
    assert misfit(False, IMAGENET_MEAN, IMAGENET_STD, IMAGENET_MEAN, IMAGENET_STD) == ""
    assert "TO_BGR255 False" in misfit(True, mean, std, IMAGENET_MEAN, IMAGENET_STD)  # the channels are reversed
    assert "TO_BGR255 False" in misfit(False, (0.5, 0.5, 0.5), IMAGENET_STD, IMAGENET_MEAN, IMAGENET_STD)
