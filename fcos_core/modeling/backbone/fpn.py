"""Feature pyramid network.

Reference: Lin et al., Feature Pyramid Networks for Object Detection, arXiv:1612.03144; P6 and P7: Lin et al., Focal
Loss for Dense Object Detection, arXiv:1708.02002, footnote 2.
"""
from torch import nn
from torch.nn import functional as F


class FPN(nn.Module):
    """Give every level of a backbone the same width and the semantics of the deeper levels.

    Args:
        in_channels_list: widths of the backbone's maps, fine to coarse; 0 leaves a level out.
        out_channels: width of all outputs.
        conv_block: maker of convolutions, (in_channels, out_channels, kernel_size) -> module.
        top_blocks: adds coarser levels: None, `LastLevelP6P7`, or a module that maps the coarsest output to a list of
            further ones, as `LastLevelMaxPool` does.
    """

    def __init__(self, in_channels_list, out_channels, conv_block, top_blocks=None):
        super().__init__()
        self.inner_blocks = []  # names, or None for a level that is left out
        self.layer_blocks = []
        for index, in_channels in enumerate(in_channels_list, 1):
            inner_name, layer_name = f"fpn_inner{index}", f"fpn_layer{index}"
            if in_channels == 0:
                inner_name = layer_name = None
            else:
                self.add_module(inner_name, conv_block(in_channels, out_channels, 1))
                self.add_module(layer_name, conv_block(out_channels, out_channels, 3))
            self.inner_blocks.append(inner_name)
            self.layer_blocks.append(layer_name)
        self.top_blocks = top_blocks

    def forward(self, x):
        """Merge from coarse to fine.

        Args:
            x: list of maps [N, C_k, H_k, W_k], fine to coarse, one for each entry of in_channels_list.

        Returns:
            Tuple of maps [N, out_channels, H_k, W_k], fine to coarse, those of top_blocks last.
        """
        results = []
        inner = None
        for feature, inner_name, layer_name in zip(x[::-1], self.inner_blocks[::-1], self.layer_blocks[::-1]):
            if inner_name is None:
                continue
            lateral = getattr(self, inner_name)(feature)
            if inner is not None:
                # to the size of the lateral map, not by a factor of 2: odd sizes occur when images are not padded
                lateral = lateral + F.interpolate(inner, size=lateral.shape[-2:], mode="nearest")
            inner = lateral
            results.insert(0, getattr(self, layer_name)(inner))
        if isinstance(self.top_blocks, LastLevelP6P7):
            results.extend(self.top_blocks(x[-1], results[-1]))
        elif self.top_blocks is not None:
            results.extend(self.top_blocks(results[-1]))
        return tuple(results)


class LastLevelMaxPool(nn.Module):
    """One more level: every second cell of the coarsest one."""

    def forward(self, x):
        """[N, C, H, W] -> list of one map [N, C, ceil(H / 2), ceil(W / 2)]."""
        return [F.max_pool2d(x, 1, 2, 0)]


class LastLevelP6P7(nn.Module):
    """Two more levels by 3x3 convolutions of stride 2: P6 from C5 or P5, P7 from P6.

    Args:
        in_channels: width of the input of P6.
        out_channels: width of P6 and P7.
        relu_before_p7: take P7 from ReLU(P6) instead of P6.

    Note:
        Legacy: P5 is the input of P6 if in_channels equals out_channels, otherwise C5.  A C5 as wide as the pyramid is
        therefore never used, whatever MODEL.RETINANET.USE_C5 says; test_backbone pins it.
    """

    def __init__(self, in_channels, out_channels, relu_before_p7=True):
        super().__init__()
        self.relu_before_p7 = relu_before_p7
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        for conv in (self.p6, self.p7):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)
        self.use_P5 = in_channels == out_channels

    def forward(self, c5, p5):
        """Maps of the coarsest backbone and pyramid level, [N, C, H, W] -> list [P6, P7]."""
        p6 = self.p6(p5 if self.use_P5 else c5)
        p7 = self.p7(F.relu(p6) if self.relu_before_p7 else p6)
        return [p6, p7]
