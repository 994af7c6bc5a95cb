"""Backbones: state dicts of published checkpoints, strides, freezing, initial weights, memory format, compilation.

Their numbers are compared with recorded ones in test_fcos_golden.
"""
import gzip
import json
import os

import pytest
import torch
from torch import nn

from fcos_core.config import load_config
from fcos_core.layers.batch_norm import FrozenBatchNorm2d
from fcos_core.layers.deform_conv import DFConv2d
from fcos_core.modeling import registry
from fcos_core.modeling.backbone import build_backbone, resnet
from fcos_core.modeling.backbone.fpn import FPN, LastLevelMaxPool
from fcos_core.modeling.backbone.mobilenet import MobileNetV2
from fcos_core.modeling.make_layers import conv_with_kaiming_uniform

HERE = os.path.dirname(os.path.abspath(__file__))
CONFIGS = os.path.join(HERE, "..", "..", "configs")
with gzip.open(os.path.join(HERE, "..", "golden", "state_dicts.json.gz")) as f:
    STATE_DICTS = json.loads(f.read().decode())["models"]

# Configurations without a file here whose state dict was recorded.
OTHER_MODELS = {
    "rpn_R_50_C4_1x.yaml MODEL.FCOS_ON False": ["MODEL.BACKBONE.CONV_BODY", "R-50-C4"],
    "e2e_faster_rcnn_R_50_FPN_1x.yaml MODEL.FCOS_ON False": [
        "MODEL.BACKBONE.CONV_BODY", "R-50-FPN", "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", 256,
    ],
    "retinanet/retinanet_R-50-FPN_1x.yaml MODEL.FCOS_ON False": [
        "MODEL.BACKBONE.CONV_BODY", "R-50-FPN-RETINANET", "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", 256,
    ],
    "gn_baselines/e2e_faster_rcnn_R_50_FPN_1x_gn.yaml MODEL.FCOS_ON False": [
        "MODEL.BACKBONE.CONV_BODY", "R-50-FPN", "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", 256, "MODEL.FPN.USE_GN", True,
        "MODEL.RESNETS.STEM_FUNC", "StemWithGN", "MODEL.RESNETS.TRANS_FUNC", "BottleneckWithGN",
        "MODEL.RESNETS.STRIDE_IN_1X1", False,
    ],
}  # fmt: skip


def recorded_entries(name):
    """[name, shape, kind] of the backbone's entries; kind p trained, f frozen, b buffer."""
    entries = STATE_DICTS[name]
    entries = STATE_DICTS[entries] if isinstance(entries, str) else entries
    return [entry for entry in entries if entry[0].startswith("backbone.")]


def entries_of(backbone):
    parameters = dict(backbone.named_parameters())
    entries = []
    for name, value in backbone.state_dict().items():
        kind = "b" if name not in parameters else "p" if parameters[name].requires_grad else "f"
        entries.append(["backbone." + name, list(value.shape), kind])
    return entries


def make_cfg(body, *opts):
    base = ["MODEL.BACKBONE.CONV_BODY", body, "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", 32]
    return load_config("", base + ["MODEL.RETINANET.USE_C5", False] + list(opts))[0]


# a thin bottleneck body: everything that a test of structure needs, at a hundredth of the cost
THIN = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
WITH_BN = ["MODEL.RESNETS.STEM_FUNC", "StemWithBatchNorm", "MODEL.RESNETS.TRANS_FUNC", "BottleneckWithBatchNorm"]
P3_TO_P7 = [name for name in sorted(registry.BACKBONES) if name.endswith("-RETINANET")]


def fcos_files():
    return sorted("fcos/" + name for name in os.listdir(os.path.join(CONFIGS, "fcos")) if name.endswith(".yaml"))


@pytest.fixture
def no_initial_weights(monkeypatch):
    """Leave weights as memory was found: drawing a hundred million of them takes seconds."""
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize("name", fcos_files())
def test_state_dict_of_config_files(name, no_initial_weights):
    backbone = build_backbone(load_config(os.path.join(CONFIGS, name))[0])
    assert entries_of(backbone) == recorded_entries(name)


@pytest.mark.parametrize("name", sorted(OTHER_MODELS))
def test_state_dict_of_other_models(name, no_initial_weights):
    assert entries_of(build_backbone(load_config("", OTHER_MODELS[name])[0])) == recorded_entries(name)


@pytest.mark.parametrize("body", P3_TO_P7)
def test_pyramid_of_p3_to_p7(body):
    thin = [] if "MNV2" in body else THIN
    backbone = build_backbone(make_cfg(body, *thin)).eval()
    assert backbone.out_channels == 32
    with torch.no_grad():
        maps = backbone(torch.rand(2, 3, 96, 160))
    assert isinstance(maps, tuple)
    assert [tuple(m.shape) for m in maps] == [(2, 32, -(-96 // s), -(-160 // s)) for s in (8, 16, 32, 64, 128)]


@pytest.mark.parametrize("body,strides,width", [
    ("R-50-C4", [16], 64), ("R-50-C5", [32], 128), ("R-101-C4", [16], 64), ("R-101-C5", [32], 128),
    ("R-50-FPN", [4, 8, 16, 32, 64], 32), ("R-101-FPN", [4, 8, 16, 32, 64], 32), ("R-152-FPN", [4, 8, 16, 32, 64], 32),
])  # fmt: skip
def test_other_bodies(body, strides, width):
    backbone = build_backbone(make_cfg(body, *THIN)).eval()
    assert backbone.out_channels == width
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 128))
    assert [tuple(m.shape) for m in maps] == [(1, width, 64 // s, 128 // s) for s in strides]


def test_sizes_that_are_not_multiples_of_the_stride():
    backbone = build_backbone(make_cfg("R-50-FPN-RETINANET", *THIN)).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 75, 101))
    assert [tuple(m.shape[-2:]) for m in maps] == [(10, 13), (5, 7), (3, 4), (2, 2), (1, 1)]


def test_every_registered_name_is_tested():
    tested = set(P3_TO_P7) | {"R-50-C4", "R-50-C5", "R-101-C4", "R-101-C5", "R-50-FPN", "R-101-FPN", "R-152-FPN"}
    assert set(registry.BACKBONES) == tested


@pytest.mark.parametrize("key,value,known", [
    ("MODEL.BACKBONE.CONV_BODY", "R-34-FPN", "R-50-FPN-RETINANET"),
    ("MODEL.RESNETS.STEM_FUNC", "Stem", "StemWithBatchNorm"),
    ("MODEL.RESNETS.TRANS_FUNC", "Bottleneck", "BottleneckWithBatchNorm"),
])  # fmt: skip
@pytest.mark.parametrize("body", ["R-50-FPN-RETINANET", "R-18-FPN-RETINANET"])
def test_unknown_names_list_the_known_ones(body, key, value, known):
    with pytest.raises(ValueError) as info:
        build_backbone(make_cfg(body, key, value))
    for part in (key, known, repr(value)):
        assert part in str(info.value)


# widths and blocks


def test_basic_blocks_have_the_widths_of_the_paper_by_default():
    body = resnet.ResNet(make_cfg("R-18-FPN-RETINANET"))
    assert body.out_channels_per_stage == [64, 128, 256, 512]
    assert [len(getattr(body, f"layer{k}")) for k in (1, 2, 3, 4)] == [2, 2, 2, 2]
    # 11.69 million weights of the network of 18 layers, less the classifier (0.513) and the batch norms (0.010)
    assert abs(sum(p.numel() for p in body.parameters()) - 11.167e6) < 0.001e6
    body = resnet.ResNet(make_cfg("R-34-FPN-RETINANET", *THIN))
    assert body.out_channels_per_stage == [16, 32, 64, 128]
    assert [len(getattr(body, f"layer{k}")) for k in (1, 2, 3, 4)] == [3, 4, 6, 3]


@pytest.mark.parametrize("opts", [
    ["MODEL.RESNETS.NUM_GROUPS", 32], ["MODEL.RESNETS.STAGE_WITH_DCN", (False, False, False, True)],
])  # fmt: skip
def test_basic_blocks_refuse_groups_and_deformation(opts):
    with pytest.raises(ValueError, match="body of basic blocks"):
        resnet.ResNet(make_cfg("R-18-FPN-RETINANET", *opts))


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_place_of_the_stride(stride_in_1x1):
    body = resnet.ResNet(make_cfg("R-50-FPN-RETINANET", "MODEL.RESNETS.STRIDE_IN_1X1", stride_in_1x1, *THIN))
    first, second = body.layer2[0], body.layer2[1]
    assert (first.conv1.stride, first.conv2.stride) == (((2, 2), (1, 1)) if stride_in_1x1 else ((1, 1), (2, 2)))
    assert second.conv1.stride == second.conv2.stride == (1, 1) and second.downsample is None
    assert body.layer1[0].conv1.stride == body.layer1[0].conv2.stride == (1, 1)


def test_dilation_replaces_the_stride_of_the_last_stage():
    body = resnet.ResNet(make_cfg("R-50-FPN-RETINANET", "MODEL.RESNETS.RES5_DILATION", 2, *THIN)).eval()
    assert {block.conv2.dilation for block in body.layer4} == {(2, 2)}
    with torch.no_grad():
        assert [m.shape[-1] for m in body(torch.rand(1, 3, 64, 64))] == [16, 8, 4, 4]


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_deformable_stages(modulated, stride_in_1x1):
    opts = ["MODEL.RESNETS.STAGE_WITH_DCN", (False, False, True, True), "MODEL.RESNETS.WITH_MODULATED_DCN", modulated,
            "MODEL.RESNETS.DEFORMABLE_GROUPS", 2, "MODEL.RESNETS.NUM_GROUPS", 4, "MODEL.RESNETS.RES5_DILATION", 2,
            "MODEL.RESNETS.STRIDE_IN_1X1", stride_in_1x1]  # fmt: skip
    body = resnet.ResNet(make_cfg("R-50-FPN-RETINANET", *(THIN + opts))).eval()
    for name, block in ((n, b) for n in body.stages for b in getattr(body, n)):
        conv = block.conv2
        assert isinstance(conv, DFConv2d) == (name in ("layer3", "layer4"))
        if not isinstance(conv, DFConv2d):
            continue
        assert conv.with_modulated_dcn == modulated and conv.offset.out_channels == (54 if modulated else 36)
        assert conv.offset.groups == 1 and (conv.conv.groups, conv.conv.deformable_groups) == (4, 2)
        assert conv.offset.stride == conv.conv.stride and conv.conv.bias is None
        assert conv.conv.dilation == conv.offset.dilation == ((2, 2) if name == "layer4" else (1, 1))
    stride = body.layer3[0].conv2.conv.stride
    assert stride == ((1, 1) if stride_in_1x1 else (2, 2))
    with torch.no_grad():
        assert [m.shape[-1] for m in body(torch.rand(1, 3, 64, 64))] == [16, 8, 4, 4]


@pytest.mark.parametrize("body", ["R-50-FPN-RETINANET", "R-18-FPN-RETINANET"])
@pytest.mark.parametrize("kind,expected", [
    ("FixedBatchNorm", FrozenBatchNorm2d), ("GN", nn.GroupNorm), ("BatchNorm", nn.BatchNorm2d),
])  # fmt: skip
def test_normalisation(body, kind, expected):
    opts = ["MODEL.RESNETS.STEM_FUNC", "StemWith" + kind, "MODEL.RESNETS.TRANS_FUNC", "BottleneckWith" + kind]
    opts += ["MODEL.GROUP_NORM.NUM_GROUPS", 2, "MODEL.GROUP_NORM.EPSILON", 1e-3]
    norms = [
        module
        for name, module in resnet.ResNet(make_cfg(body, *(THIN + opts))).named_modules()
        if name.split(".")[-1].startswith("bn") or name.endswith("downsample.1")
    ]
    assert len(norms) > 16 and {type(norm) for norm in norms} == {expected}
    if kind == "GN":
        assert {(norm.num_groups, norm.eps) for norm in norms} == {(2, 1e-3)}


# freezing


@pytest.mark.parametrize("freeze_at", [-1, 0, 1, 2, 5])
def test_freezing(freeze_at):
    opts = ["MODEL.BACKBONE.FREEZE_CONV_BODY_AT", freeze_at] + THIN + WITH_BN
    body = resnet.ResNet(make_cfg("R-50-FPN-RETINANET", *opts))
    frozen = {name.split(".")[0] for name, p in body.named_parameters() if not p.requires_grad}
    trained = {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad}
    parts = ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert frozen == set(parts[: max(freeze_at, 0)]) and trained == set(parts) - frozen
    before = {name: value.clone() for name, value in body.state_dict().items() if "running_mean" in name}
    body.eval().train()(torch.rand(2, 3, 64, 64))
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(body.state_dict()[name], value)}
    assert changed == trained  # statistics of frozen batch norms stay as well


def test_freezing_more_than_there_is():
    with pytest.raises(ValueError, match="FREEZE_CONV_BODY_AT of at most 4.* got 5"):
        resnet.ResNet(make_cfg("R-50-C4", "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", 5, *THIN))


@pytest.mark.parametrize("freeze_at", [-1, 0, 3])
def test_freezing_of_mobilenet(freeze_at):
    body = MobileNetV2(make_cfg("MNV2-FPN-RETINANET", "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", freeze_at))
    frozen = {int(name.split(".")[1]) for name, p in body.named_parameters() if not p.requires_grad}
    assert frozen == set(range(max(freeze_at, 0)))
    # Legacy: only gradients stop there
    before = body.features[0][1].running_mean.clone()
    body.train()(torch.rand(2, 3, 64, 64))
    assert not torch.equal(body.features[0][1].running_mean, before)


# initial weights


def test_initial_weights_of_resnet_and_pyramid():
    backbone = build_backbone(make_cfg("R-50-FPN-RETINANET", "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", 64))
    convolutions = {name: m for name, m in backbone.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convolutions) == 53 + 6 + 2
    for name, conv in convolutions.items():
        bound = (3.0 / conv.weight[0].numel()) ** 0.5  # kaiming-uniform, a = 1
        assert 0.95 * bound < conv.weight.abs().max() <= bound, name
        assert abs(conv.weight.mean()) < 0.05 * bound, name
        assert (conv.bias is None) == name.startswith("body."), name
        assert conv.bias is None or (conv.bias == 0).all(), name


def test_initial_weights_of_deformable_stages():
    """Offsets are not predicted as 0 at first, unlike in the papers."""
    opts = ["MODEL.RESNETS.STAGE_WITH_DCN", (False, True, True, True), "MODEL.RESNETS.WITH_MODULATED_DCN", True]
    body = resnet.ResNet(make_cfg("R-50-FPN-RETINANET", *opts))
    layers = [m for m in body.modules() if isinstance(m, DFConv2d)]
    assert len(layers) == 4 + 6 + 3
    for layer in layers:
        fan_in = layer.offset.weight[0].numel()
        assert 0.95 * (3.0 / fan_in) ** 0.5 < layer.offset.weight.abs().max() <= (3.0 / fan_in) ** 0.5
        assert (layer.offset.bias == 0).all()
        assert 0.95 * fan_in**-0.5 < layer.conv.weight.abs().max() <= fan_in**-0.5


def test_initial_weights_of_mobilenet():
    for name, conv in MobileNetV2(make_cfg("MNV2-FPN-RETINANET")).named_modules():
        if isinstance(conv, nn.Conv2d):
            expected = (2.0 / (conv.kernel_size[0] ** 2 * conv.out_channels)) ** 0.5
            assert abs(conv.weight.std() / expected - 1) < 4 / conv.weight.numel() ** 0.5, name
            assert conv.bias is None
        elif isinstance(conv, nn.BatchNorm2d):
            assert (conv.weight == 1).all() and (conv.bias == 0).all()


# pyramid


def test_pyramid_merges_from_coarse_to_fine():
    """With constant inputs and unit kernels every level is the sum of its own and all coarser laterals."""
    fpn = FPN([1, 1, 1], 1, lambda cin, cout, k: nn.Conv2d(cin, cout, k, padding=k // 2, bias=False))
    for weight in fpn.parameters():
        weight.data.zero_()
        weight.data[..., weight.shape[-2] // 2, weight.shape[-1] // 2] = 1
    fine, middle, coarse = torch.rand(1, 1, 7, 9), torch.rand(1, 1, 4, 5), torch.rand(1, 1, 2, 3)
    with torch.no_grad():
        merged = fpn([fine, middle, coarse])
    # nearest: cell i of n takes cell floor(i * m / n) of the m cells below
    def up(x, like):
        rows = [i * x.shape[2] // like.shape[2] for i in range(like.shape[2])]
        columns = [i * x.shape[3] // like.shape[3] for i in range(like.shape[3])]
        return x[:, :, rows][:, :, :, columns]

    expected_middle = middle + up(coarse, middle)
    for mine, expected in zip(merged, (fine + up(expected_middle, fine), expected_middle, coarse)):
        assert torch.allclose(mine, expected)


def test_pyramid_options():
    cfg = make_cfg("R-50-FPN-RETINANET", "MODEL.FPN.USE_GN", True, "MODEL.FPN.USE_RELU", True,
                   "MODEL.GROUP_NORM.NUM_GROUPS", 8, *THIN)  # fmt: skip
    fpn = build_backbone(cfg).fpn
    assert [type(m) for m in fpn.fpn_inner2] == [nn.Conv2d, nn.GroupNorm, nn.ReLU] and fpn.fpn_layer4[1].num_groups == 8


def test_max_pool_level_takes_every_second_cell():
    x = torch.rand(1, 2, 5, 6)
    assert torch.equal(LastLevelMaxPool()(x)[0], x[:, :, ::2, ::2])


@pytest.mark.parametrize("use_c5", [True, False])
def test_input_of_p6(use_c5):
    backbone = build_backbone(make_cfg("R-50-FPN-RETINANET", "MODEL.RETINANET.USE_C5", use_c5, *THIN))
    top = backbone.fpn.top_blocks
    assert top.p6.in_channels == (128 if use_c5 else 32)
    c5, p5 = torch.rand(1, 128, 4, 4), torch.rand(1, 32, 4, 4)
    p6, p7 = top(c5, p5)
    assert torch.equal(p6, top.p6(c5 if use_c5 else p5)) and torch.equal(p7, top.p7(p6.clamp(min=0)))


def test_p6_comes_from_p5_when_c5_is_as_wide():
    """Legacy: equality of widths decides, not MODEL.RETINANET.USE_C5."""
    cfg = make_cfg("R-50-FPN-RETINANET", "MODEL.RETINANET.USE_C5", True, *THIN)
    cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS = 128
    top = build_backbone(cfg).fpn.top_blocks
    c5, p5 = torch.rand(1, 128, 4, 4), torch.rand(1, 128, 4, 4)
    assert torch.equal(top(c5, p5)[0], top.p6(p5))


def test_mobilenet_never_uses_c5():
    top = build_backbone(make_cfg("MNV2-FPN-RETINANET", "MODEL.RETINANET.USE_C5", True)).fpn.top_blocks
    assert top.use_P5 and top.p6.in_channels == 32


# formats, gradients, compilation


@pytest.mark.parametrize("body", ["R-50-FPN-RETINANET", "R-18-FPN-RETINANET", "MNV2-FPN-RETINANET"])
def test_channels_last_stays(body, device):
    probe = torch.rand(1, 8, 5, 5, device=device).contiguous(memory_format=torch.channels_last)
    convolution = nn.Conv2d(8, 8, 3).to(device=device, memory_format=torch.channels_last)
    if not convolution(probe).is_contiguous(memory_format=torch.channels_last):
        pytest.skip("convolutions of this torch do not keep channels-last on this device")
    backbone = build_backbone(make_cfg(body, *([] if "MNV2" in body else THIN))).to(device).eval()
    x = torch.rand(2, 3, 96, 160, device=device)
    formats = {}

    def note(module, inputs, output):
        if isinstance(output, torch.Tensor) and output.shape[1] > 1 and output[0, 0].numel() > 1:
            formats[names[module]] = output.is_contiguous(memory_format=torch.channels_last)

    names = {module: name for name, module in backbone.named_modules()}
    with torch.no_grad():
        expected = backbone(x)
        backbone = backbone.to(memory_format=torch.channels_last)
        for module in names:
            module.register_forward_hook(note)
        maps = backbone(x.contiguous(memory_format=torch.channels_last))
    assert len(formats) > 40 and [name for name, kept in formats.items() if not kept] == []
    for mine, other in zip(maps, expected):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("body", ["R-50-FPN-RETINANET", "R-18-FPN-RETINANET", "MNV2-FPN-RETINANET"])
def test_every_trained_parameter_gets_a_gradient(body):
    opts = [] if "MNV2" in body else THIN + WITH_BN
    backbone = build_backbone(make_cfg(body, "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", -1, *opts))
    sum(m.square().mean() for m in backbone(torch.rand(2, 3, 64, 64))).backward()
    missing = [name for name, p in backbone.named_parameters() if p.grad is None]
    assert missing == []


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="this torch has no torch.compile")
@pytest.mark.parametrize("body", ["R-18-FPN-RETINANET", pytest.param("MNV2-FPN-RETINANET", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(body):
    backbone = build_backbone(make_cfg(body, *([] if "MNV2" in body else THIN))).eval()
    try:
        compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    except RuntimeError as error:  # of Python 3.12 before torch 2.4, of 3.11 before 2.1
        if "not supported on Python" not in str(error):
            raise
        pytest.skip(str(error))
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for mine, expected in zip(compiled(x), backbone(x)):
            assert torch.allclose(mine, expected, atol=1e-5)


def test_settings_do_not_come_from_the_global_configuration():
    """Two models with different group norm settings live in one process."""
    opts = ["MODEL.RESNETS.STEM_FUNC", "StemWithGN", "MODEL.RESNETS.TRANS_FUNC", "BottleneckWithGN"]
    groups = []
    for count in (2, 4):
        body = resnet.ResNet(make_cfg("R-50-FPN-RETINANET", "MODEL.GROUP_NORM.NUM_GROUPS", count, *(THIN + opts)))
        groups.append({m.num_groups for m in body.modules() if isinstance(m, nn.GroupNorm)})
    assert groups == [{2}, {4}]


def test_fpn_without_top_blocks():
    fpn = FPN([4, 8], 6, conv_with_kaiming_uniform())
    maps = fpn([torch.rand(1, 4, 8, 8), torch.rand(1, 8, 4, 4)])
    assert [tuple(m.shape) for m in maps] == [(1, 6, 8, 8), (1, 6, 4, 4)]
