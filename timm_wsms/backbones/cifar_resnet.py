"""ResNets for 32×32 images: He et al. 2016 (CVPR), Section 4.2; the backbones of the paper's Section 4.2.

A 3×3 stem and three levels of 16, 32, 64 channels, each of (depth - 2) / 6 basic blocks. Where the map is halved, the
shortcut takes every second pixel and pads the new channels with zeros (option A), so it has no parameters.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from timm_wsms.backbones.sequential import SequentialBackbone, cifar_cfg, cifar_feature_cfg

__all__ = ["CifarResNet"]

CHANNELS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a parameter-free shortcut; ReLU after the addition (the CVPR 2016 form)."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, **dd: Any):
        super().__init__()
        self.stride = stride
        self.new_channels = channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(channels, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **dd)
        self.bn2 = nn.BatchNorm2d(channels, **dd)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) → (B, channels, H / stride, W / stride)."""
        shortcut = x
        if self.new_channels:
            half = self.new_channels // 2  # zeros on both sides of the old channels, as in the original code
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new_channels - half))
        x = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(SequentialBackbone):
    """ResNet for small images.

    Args:
        depth: 6 n + 2 layers with parameters, n blocks per level.
        in_chans: Channels of the image.
        **kwargs: See `SequentialBackbone`.
    """

    def __init__(self, depth: int, in_chans: int = 3, device: Any = None, dtype: Any = None, **kwargs: Any):
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6 n + 2, not {depth}")
        dd = {"device": device, "dtype": dtype}
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv0"] = nn.Conv2d(in_chans, CHANNELS[0], 3, padding=1, bias=False, **dd)
        layers["bn0"] = nn.BatchNorm2d(CHANNELS[0], **dd)
        layers["act0"] = nn.ReLU(inplace=True)
        info = []
        in_channels = CHANNELS[0]
        for level, channels in enumerate(CHANNELS, start=1):
            first = BasicBlock(in_channels, channels, stride=1 if level == 1 else 2, **dd)
            rest_of_level = [BasicBlock(channels, channels, **dd) for _ in range(blocks - 1)]
            layers[f"layer{level}"] = nn.Sequential(first, *rest_of_level)
            info.append({"num_chs": channels, "reduction": 2 ** (level - 1), "module": f"features.layer{level}"})
            in_channels = channels
        super().__init__(nn.Sequential(layers), info, in_chans=in_chans, **kwargs)


DEPTHS = (20, 26, 32, 44, 56, 110, 116, 122)  # the paper's; 26 costs what ResNet-20 does at three sizes
default_cfgs = generate_default_cfgs({f"resnet{depth}_cifar": cifar_cfg() for depth in DEPTHS})


def _register(depth: int) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
        name = f"resnet{depth}_cifar"
        return build_model_with_cfg(
            CifarResNet, name, pretrained, feature_cfg=cifar_feature_cfg(), depth=depth, **kwargs
        )

    entrypoint.__name__ = entrypoint.__qualname__ = f"resnet{depth}_cifar"
    entrypoint.__doc__ = f"ResNet-{depth} for 32×32 images (He et al. 2016, Section 4.2)."
    globals()[entrypoint.__name__] = register_model(entrypoint)


for _depth in DEPTHS:
    _register(_depth)
