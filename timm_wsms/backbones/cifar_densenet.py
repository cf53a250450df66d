"""DenseNets for 32×32 images: Huang et al. 2016; the backbones of the paper's Section 4.1.

A 3×3 stem of 16 channels, then three dense blocks of (depth - 4) / 3 layers, each BN-ReLU-3×3 convolution with
`growth_rate` new channels; no bottleneck, no compression. The last block is followed by BN-ReLU.
"""

from collections import OrderedDict
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from timm_wsms.backbones.sequential import SequentialBackbone, cifar_cfg, cifar_feature_cfg

__all__ = ["CifarDenseNet"]


class DenseLayer(nn.Module):
    """BN-ReLU-3×3 convolution: (B, in_channels, H, W) → (B, growth_rate, H, W)."""

    def __init__(self, in_channels: int, growth_rate: int, **dd: Any):
        super().__init__()
        self.norm = BatchNormAct2d(in_channels, **dd)
        self.conv = nn.Conv2d(in_channels, growth_rate, 3, padding=1, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


class DenseBlock(nn.Module):
    """Layers that each see the maps of all before: (B, C, H, W) → (B, C + layers × growth_rate, H, W)."""

    def __init__(self, in_channels: int, growth_rate: int, layers: int, **dd: Any):
        super().__init__()
        for i in range(layers):
            self.add_module(f"layer{i + 1}", DenseLayer(in_channels + i * growth_rate, growth_rate, **dd))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = torch.cat((x, layer(x)), 1)
        return x


def transition(channels: int, **dd: Any) -> nn.Sequential:
    """BN-ReLU-1×1 convolution-2×2 average pooling: (B, C, H, W) → (B, C, H / 2, W / 2)."""
    return nn.Sequential(
        OrderedDict(
            norm=BatchNormAct2d(channels, **dd),
            conv=nn.Conv2d(channels, channels, 1, bias=False, **dd),
            pool=nn.AvgPool2d(2),
        )
    )


class CifarDenseNet(SequentialBackbone):
    """DenseNet for small images.

    Args:
        growth_rate: New channels per layer, k.
        depth: 3 n + 4 layers with parameters, n layers per dense block.
        in_chans: Channels of the image.
        **kwargs: See `SequentialBackbone`.
    """

    def __init__(
        self,
        growth_rate: int,
        depth: int = 100,
        in_chans: int = 3,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        layers, rest = divmod(depth - 4, 3)
        if rest or layers < 1:
            raise ValueError(f"depth must be 3 n + 4, not {depth}")
        dd = {"device": device, "dtype": dtype}
        channels = 16
        features: OrderedDict[str, nn.Module] = OrderedDict()
        features["conv0"] = nn.Conv2d(in_chans, channels, 3, padding=1, bias=False, **dd)
        info = []
        for block in (1, 2, 3):
            features[f"denseblock{block}"] = DenseBlock(channels, growth_rate, layers, **dd)
            channels += layers * growth_rate
            info.append({"num_chs": channels, "reduction": 2 ** (block - 1), "module": f"features.denseblock{block}"})
            if block < 3:
                features[f"transition{block}"] = transition(channels, **dd)
        features["norm"] = BatchNormAct2d(channels, **dd)
        info[-1]["module"] = "features.norm"  # as timm's DenseNet: the last map is taken after the norm
        super().__init__(nn.Sequential(features), info, in_chans=in_chans, **kwargs)


GROWTH_RATES = (24, 26)
default_cfgs = generate_default_cfgs({f"densenet100_k{k}_cifar": cifar_cfg() for k in GROWTH_RATES})


def _build(name: str, pretrained: bool, **kwargs: Any) -> CifarDenseNet:
    return build_model_with_cfg(CifarDenseNet, name, pretrained, feature_cfg=cifar_feature_cfg(), **kwargs)


@register_model
def densenet100_k24_cifar(pretrained: bool = False, **kwargs: Any) -> CifarDenseNet:
    """DenseNet-100 with growth rate 24 (Huang et al. 2016)."""
    return _build("densenet100_k24_cifar", pretrained, growth_rate=24, **kwargs)


@register_model
def densenet100_k26_cifar(pretrained: bool = False, **kwargs: Any) -> CifarDenseNet:
    """DenseNet-100 with growth rate 26: the paper's comparison at equal parameters (Table 1)."""
    return _build("densenet100_k26_cifar", pretrained, growth_rate=26, **kwargs)
