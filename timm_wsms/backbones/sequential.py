"""What the CIFAR backbones have in common: a chain of layers, pooling, a linear layer; and timm's interface, once."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import create_classifier, get_device_dtype
from timm.models import checkpoint, checkpoint_seq
from torch import nn

from timm_wsms.utils import take_indices

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


def cifar_cfg(**kwargs: Any) -> dict[str, Any]:
    """A timm `default_cfg` for 32×32 images and 10 classes, without pretrained weights."""
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": CIFAR_MEAN,
        "std": CIFAR_STD,
        "first_conv": "features.conv0",
        "classifier": "fc",
        "license": "apache-2.0",
        **kwargs,
    }


def cifar_feature_cfg() -> dict[str, Any]:
    """How timm's `features_only=True` reads the three levels of a CIFAR backbone: by `forward_intermediates`."""
    return {"out_indices": (0, 1, 2), "feature_cls": "getter"}


class SequentialBackbone(nn.Module):
    """A classifier that is one `nn.Sequential` of named layers, global pooling and a linear layer.

    Args:
        features: The layers, from the image (B, in_chans, H, W) to the last map (B, C, h, w).
        feature_info: One entry per level: `num_chs`, `reduction`, and `module` = ``features.<name of its last layer>``.
        num_classes: Size of the classifier; 0 for none.
        in_chans: Channels of the image.
        global_pool: timm's pooling type; ``""`` for none.
        drop_rate: Dropout probability before the classifier.
    """

    # How the paper puts its own backbones together (Sections 4.1, 4.2): WsmsNet takes these as its defaults.
    wsms_defaults: ClassVar = {"residual": False, "integration_channels": 128}

    def __init__(
        self,
        features: nn.Sequential,
        feature_info: list[dict[str, Any]],
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.features = features
        self.feature_info = feature_info
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.num_features = feature_info[-1]["num_chs"]
        self._set_head(global_pool)
        self.init_weights()

    def _set_head(self, global_pool: str) -> None:
        self.global_pool, self.fc = create_classifier(
            self.num_features, self.num_classes, pool_type=global_pool, **get_device_dtype(self)
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    @torch.no_grad()
    def init_weights(self) -> None:
        """He initialization of every convolution (fan-out, normal): the paper, Sections 4.1 and 4.2."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def feature_ends(self) -> list[int]:
        """Position in `features` of the last layer of each level."""
        names = [name for name, _ in self.features.named_children()]
        ends = [info["module"].removeprefix("features.") for info in self.feature_info]
        return [names.index(end) for end in ends if end in names]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions for timm's layer-wise grouping of parameters."""
        blocks: list[tuple[str, Any]] = [
            (r"^features\.[a-z]+(\d+)\.(?:layer)?(\d+)\.", None),
            (r"^features\.transition(\d+)", (99999,)),  # after the layers of the block with its number
        ]
        if coarse:
            blocks = [(r"^features\.[a-z]+(\d+)", None)]
        return {"stem": r"^features\.(?:conv0|bn0)", "blocks": [*blocks, (r"^features\.norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0 classes: none), and the pooling unless it is None."""
        self.num_classes = num_classes
        self._set_head(self.global_pool.pool_type if global_pool is None else global_pool)
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def _run(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        single = next(layer.children(), None) is None  # nothing to save; and a ReLU in place would change its own input
        if single or not (self.grad_checkpointing and self.training and x.requires_grad):
            return layer(x)
        return checkpoint_seq(layer, x) if isinstance(layer, nn.Sequential) else checkpoint(layer, x)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of the chosen levels, and the last map unless `intermediates_only`: as timm's method of this name."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        ends = self.feature_ends
        take, last = take_indices(len(ends), indices)
        maps = []
        for position, layer in enumerate(self.features):
            x = self._run(layer, x)
            if position in ends and ends.index(position) in take:
                maps.append(x)
            if stop_early and position == ends[last]:
                break
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers after the deepest of the chosen levels, and the classifier."""
        ends = self.feature_ends
        take, last = take_indices(len(ends), indices)
        ends_early = last < len(ends) - 1
        self.features = self.features[: ends[last] + 1]
        if ends_early:
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or ends_early:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → (B, num_features, h, w)."""
        for layer in self.features:
            x = self._run(layer, x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, num_features, h, w) → (B, num_classes), or the pooled features (B, num_features)."""
        x = self.global_pool(x)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → (B, num_classes)."""
        return self.forward_head(self.forward_features(x))
