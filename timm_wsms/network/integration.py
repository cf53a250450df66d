"""The integration layer: the maps of all stages become one (paper, Section 3.3 and Fig. 3)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from timm_wsms.network.layouts import with_plain_strides

IntegrationKind = Literal["conv1x1", "conv3x3", "none"]


class PointwiseConv2d(nn.Conv2d):
    """A 1×1 convolution computed as a matrix product, over maps in NHWC memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) → (B, out_channels, h, w)."""
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Integration(nn.Module):
    """Concatenation, then convolution (no bias), batch normalization and ReLU; or only concatenation.

    Args:
        in_channels: Channels of each stage's map, stage 1 first.
        out_channels: Channels of the integrated map, c in the paper.
        kernel_size: 1 or 3; 0 for the paper's *no conv*.
        residual: Weight the integrated map by γ, one weight per channel, since it is to be added to f1.
        gamma: Initial value of γ.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        kernel_size: int,
        residual: bool = False,
        gamma: float = 1.0,
    ):
        super().__init__()
        self.conv: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()
        if kernel_size:
            kind = PointwiseConv2d if kernel_size == 1 else nn.Conv2d
            shape = sum(in_channels), out_channels, kernel_size
            conv = kind(*shape, padding=kernel_size // 2, bias=False, device="meta")
            self.conv = conv.to_empty(device=torch.get_default_device())  # without values that are about to be replaced
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.norm = nn.BatchNorm2d(out_channels)  # not timm's with the activation in it, which converters drop
            self.act = nn.ReLU()
        self.gamma = nn.Parameter(torch.full((out_channels,), gamma)) if residual else None

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """S maps (B, C_s, h, w) → (B, out_channels, h, w)."""
        x = torch.cat([x.permute(0, 2, 3, 1) for x in maps], -1).permute(0, 3, 1, 2)  # read as it is by every layout
        x = self.act(self.norm(with_plain_strides(self.conv(x))))
        if self.gamma is None:
            return x
        return torch.mul(
            self.gamma[:, None, None], x
        )  # torch.fx's optimize_for_inference tries in vain to move `*` to MKL-DNN
