"""The plain CNN of the MNIST-scale experiments: Sosnovik et al. 2020, Scale-Equivariant Steerable Networks (ICLR).

Three 7×7 convolutions, each followed by ReLU, 2×2 max pooling and batch normalization; the last map is pooled to 2×2
whatever its size, and a hidden layer of 256 units comes before the classifier. 0.4945 M parameters.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from timm_wsms.backbones.sequential import SequentialBackbone, cifar_cfg, cifar_feature_cfg

__all__ = ["MnistCnn"]

POOLS = {"max": nn.AdaptiveMaxPool2d, "avg": nn.AdaptiveAvgPool2d}
POOLED = 2  # rows and columns of the pooled map


class MnistCnn(SequentialBackbone):
    """CNN for digits.

    The original's last pooling has windows of a fixed size and leaves out the map's last row and column; this one
    covers it.

    Args:
        channels: Channels of the three convolutions.
        hidden_size: Units of the hidden layer.
        in_chans: Channels of the image.
        global_pool: "max" or "avg", to 2×2 pixels; "" for none, and then no hidden layer either.
        drop_rate: Dropout probability after the hidden layer.
        **kwargs: See `SequentialBackbone`.
    """

    wsms_defaults: ClassVar = {}  # not one of the WSMS paper's networks: as for timm's backbones

    def __init__(
        self,
        channels: Sequence[int] = (32, 63, 95),
        hidden_size: int = 256,
        in_chans: int = 1,
        global_pool: str = "max",
        drop_rate: float = 0.7,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        dd = {"device": device, "dtype": dtype}
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        info = []
        before = in_chans
        for level, width in enumerate(channels, start=1):
            if level > 1:
                layers[f"pool{level - 1}"] = nn.MaxPool2d(2)
                layers[f"norm{level - 1}"] = nn.BatchNorm2d(before, **dd)
            layers[f"conv{level}"] = nn.Conv2d(before, width, 7, padding=3, **dd)
            layers[f"act{level}"] = nn.ReLU(inplace=True)
            info.append({"num_chs": width, "reduction": 2 ** (level - 1), "module": f"features.act{level}"})
            before = width
        self._hidden_size = hidden_size
        super().__init__(
            nn.Sequential(layers), info, in_chans=in_chans, global_pool=global_pool, drop_rate=drop_rate, **kwargs
        )

    def _set_head(self, global_pool: str) -> None:
        if global_pool not in ("", *POOLS):
            raise ValueError(f"global_pool must be 'max', 'avg' or '', not {global_pool!r}")
        dd = get_device_dtype(self)
        self.global_pool = SelectAdaptivePool2d(POOLED, pool_type=global_pool)
        if not global_pool:
            self.hidden: nn.Module = nn.Identity()
        elif isinstance(
            getattr(self, "hidden", nn.Identity()), nn.Identity
        ):  # it is kept where only the classes change
            flat = self.num_features * POOLED**2
            layers = {
                "norm3": nn.BatchNorm2d(self.num_features, **dd),
                "flatten": nn.Flatten(),
                "fc": nn.Linear(flat, self._hidden_size, bias=False, **dd),
                "norm4": nn.BatchNorm1d(self._hidden_size, **dd),
                "act": nn.ReLU(inplace=True),
            }
            self.hidden = nn.Sequential(OrderedDict(layers))
        self.head_hidden_size = self._hidden_size if global_pool else self.num_features
        self.fc = nn.Linear(self.head_hidden_size, self.num_classes, **dd) if self.num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions for timm's layer-wise grouping of parameters."""
        return {"stem": r"^features\.conv1", "blocks": [(r"^features\.[a-z]+(\d+)", None), (r"^hidden", (99999,))]}

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, num_features, h, w) → (B, num_classes), or the hidden layer's units (B, head_hidden_size)."""
        x = self.hidden(self.global_pool(x))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)


default_cfgs = generate_default_cfgs(
    {
        "mnist_cnn": cifar_cfg(
            input_size=(1, 28, 28), pool_size=(7, 7), mean=(0.0607,), std=(0.2161,), first_conv="features.conv1"
        )
    }
)


@register_model
def mnist_cnn(pretrained: bool = False, **kwargs: Any) -> MnistCnn:
    """The plain CNN of Sosnovik et al. 2020, for MNIST-scale."""
    return build_model_with_cfg(MnistCnn, "mnist_cnn", pretrained, feature_cfg=cifar_feature_cfg(), **kwargs)
