"""ResNets that halve their maps by average pooling: the paper's Section 4.3 and Fig. 8.

Where ResNet's bottleneck has a 3×3 convolution of stride 2, these have one of stride 1, BN, ReLU and 2×2 average
pooling; the shortcut is 2×2 average pooling, then a 1×1 convolution of stride 1 and BN. (Fig. 8 draws the shortcut's
pooling after its convolution; the two commute, and this order costs a quarter.) The stem stays as it is.
"""

from typing import Any, ClassVar

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

__all__ = ["AvgPoolResNet"]


class CeilAvgPool2d(nn.AvgPool2d):
    """Average pooling that keeps the last row and column of an odd map, as the stride and timm's shortcut do."""

    def __init__(self, side: int):
        super().__init__(side, ceil_mode=True, count_include_pad=False)


class AvgPoolResNet(ResNet):
    """timm's ResNet with average pooling instead of strides.

    Args:
        layers: Bottleneck blocks per level.
        zero_init_last: Start every residual branch at zero; off, as in the paper's training.
        **kwargs: See timm's `ResNet`.
    """

    wsms_defaults: ClassVar = {"residual": False}

    def __init__(self, layers: tuple[int, ...], zero_init_last: bool = False, **kwargs: Any):
        block: Any = Bottleneck  # timm's annotation asks for an instance, its code for the class
        super().__init__(block, layers, aa_layer=CeilAvgPool2d, avg_down=True, zero_init_last=zero_init_last, **kwargs)
        # timm's aa_layer replaces it too; the paper keeps it
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)  # type: ignore[assignment]


LAYERS = {"resnet50_avgpool": (3, 4, 6, 3), "resnet101_avgpool": (3, 4, 23, 3), "resnet152_avgpool": (3, 8, 36, 3)}
_cfg = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "conv1",
    "classifier": "fc",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({name: _cfg for name in LAYERS})


@register_model
def resnet50_avgpool(pretrained: bool = False, **kwargs: Any) -> AvgPoolResNet:
    """ResNet-50 with average-pool downsizing (paper, Fig. 8)."""
    return build_model_with_cfg(
        AvgPoolResNet, "resnet50_avgpool", pretrained, layers=LAYERS["resnet50_avgpool"], **kwargs
    )


@register_model
def resnet101_avgpool(pretrained: bool = False, **kwargs: Any) -> AvgPoolResNet:
    """ResNet-101 with average-pool downsizing (paper, Fig. 8)."""
    return build_model_with_cfg(
        AvgPoolResNet, "resnet101_avgpool", pretrained, layers=LAYERS["resnet101_avgpool"], **kwargs
    )


@register_model
def resnet152_avgpool(pretrained: bool = False, **kwargs: Any) -> AvgPoolResNet:
    """ResNet-152 with average-pool downsizing (paper, Fig. 8)."""
    return build_model_with_cfg(
        AvgPoolResNet, "resnet152_avgpool", pretrained, layers=LAYERS["resnet152_avgpool"], **kwargs
    )
