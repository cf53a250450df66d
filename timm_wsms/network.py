"""The weight-shared multi-stage network (Takahashi et al., ACML 2017, Section 3): image → pyramid → stages → head."""

import re
from collections.abc import Callable
from typing import Any, get_args

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead
from timm.models import register_notrace_function
from timm.models._input import _get_global_pool
from timm.models.coat import CoaT
from timm.models.efficientvim import EfficientViM
from timm.models.pit import PoolingVisionTransformer
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.feature_maps import FeatureMaps
from timm_wsms.integration import Integration, IntegrationKind
from timm_wsms.layouts import Layout, merge, to_map
from timm_wsms.pruning import remove_head
from timm_wsms.recompute import update_statistics_once
from timm_wsms.sharing import TimmModel, UnsharedNorms, duplicate_keys, tie
from timm_wsms.stages import Level, Size, is_flat, levels, make_stage, parts

NO_PATCHES = (PoolingVisionTransformer,)  # forward_features gives class tokens alone
GIVES_SEVERAL = (CoaT, EfficientViM)  # features, of which `num_features` is the sum, or the width of all
KERNEL_SIZE = {"conv1x1": 1, "conv3x3": 3, "none": 0}
GROUPS = {"stem": r"^\w+_embed|^cls_token", "blocks": r"^\w+\.(\d+)"}  # for layer decay, where a backbone names none


class WsmsNet(FeatureMaps):
    """A timm backbone run on the image, its half-size copy, its quarter-size copy …; the maps are integrated.

    ```
    image ─┬──────────────► stage 1: the whole backbone       ─► f1 (B, C1, h, w)
           └ avg-pool 2×2 ─┬► stage 2: its blocks up to R/2   ─► f2 (B, C2, h, w)
                           └ avg-pool 2×2 ─► stage 3: to R/4  ─► f3 (B, C3, h, w)
    concat(f1, f2, f3) ─► integration ─► global pool ─► classifier
    ```

    Args:
        build_backbone: Returns the backbone, a timm model. Called once without arguments, and once more a stage where
            nothing is shared or where parameters depend on the image size: then with `img_size` and the like.
        stages: Number of stages, S; None: 3, or the number of levels of a backbone that has fewer. 1: the backbone.
        integration: "conv1x1", "conv3x3" or "none" (paper, Fig. 3).
        integration_channels: Channels of the integrated map, c. None: f1's, or what the paper gives its own backbones.
        residual: Add the integrated map, weighted by γ, to f1 instead of putting it in f1's place. None: True but for
            the paper's own backbones.
        share_weights: False for the paper's MS-Net: the same shape, nothing shared.
        unshared_norms: Norms of which every stage has its own: "batch" (the paper), "all" or "none".
        gamma: What γ starts from: 0 leaves the backbone's logits as they are.
        img_size: Of the images, in pixels, for a backbone whose parameters depend on it; None: its default.
        feature_pyramid: Integrate the maps of the other levels too, for `forward_intermediates`.

    Raises:
        UserError: If the backbone or the arguments do not allow it; the message names the remedy.
    """

    def __init__(
        self,
        build_backbone: Callable[..., TimmModel],
        stages: int | None = None,
        integration: IntegrationKind = "conv1x1",
        integration_channels: int | None = None,
        residual: bool | None = None,
        share_weights: bool = True,
        unshared_norms: UnsharedNorms = "batch",
        gamma: float = 1.0,
        img_size: int | Size | None = None,
        feature_pyramid: bool = False,
    ):
        super().__init__()
        _check_choice("integration", integration, IntegrationKind)
        _check_choice("unshared_norms", unshared_norms, UnsharedNorms)
        self.backbone: TimmModel = (backbone := build_backbone())
        self.layout = _layout(backbone)
        for layout in ("output_fmt", "feature_dim"):  # timm's, where a backbone's features are not NCHW
            if hasattr(backbone, layout):
                setattr(self, layout, getattr(backbone, layout))
        cuts = _choose_levels(backbone, stages)
        paper = getattr(backbone, "wsms_defaults", {})
        residual = paper.get("residual", True) if residual is None else residual

        self.stages = nn.ModuleDict()  # keys "2", "3" …: the paper's numbers
        for number, level in enumerate(cuts[1:], start=2):
            self.stages[str(number)] = make_stage(
                build_backbone, backbone, level, 2 ** (number - 1), img_size, share_weights, unshared_norms
            )
        self.reduction = cuts[0].reduction
        self.map_apart = isinstance(backbone, NO_PATCHES)
        self.feature_info = [dict(backbone.feature_info[i]) for i in range(len(backbone.feature_info))]
        self.num_features: int = backbone.num_features
        # not where a convolution stands between the last map and the features (EfficientNet)
        width = self.feature_info[-1]["num_chs"] if isinstance(backbone, GIVES_SEVERAL) else self.num_features
        self.integrates_last = bool(self.stages) and self.feature_info[-1]["num_chs"] == width
        self.residual = residual
        self.integration: Integration | None = None
        self.head: ClassifierHead | None = None
        if self.stages:
            widths = [width, *(level.channels for level in cuts[1:])]
            self._integrate(widths, integration, integration_channels, residual, gamma, paper)
        if self.integrates_last and self.head is not None:
            self.feature_info[-1]["num_chs"] = self.num_features
        self.feature_pyramid = self.make_feature_pyramid(gamma) if feature_pyramid else nn.ModuleDict()
        self.register_state_dict_post_hook(_drop_duplicates)
        self.register_load_state_dict_post_hook(_tie_again)

    def _integrate(
        self, widths: list[int], kind: str, channels: int | None, residual: bool, gamma: float, paper: dict[str, Any]
    ) -> None:
        """Build the integration layer, and a head of its own where the integrated map is not as wide as f1."""
        if residual and (kind == "none" or channels not in (None, widths[0])):
            raise UserError(
                f"residual adds the integrated map to f1 of {widths[0]} channels, so it needs a convolution and "
                f"integration_channels={widths[0]}; give residual=False for integration={kind!r}, "
                f"integration_channels={channels}"
            )
        if kind == "none":
            if channels not in (None, sum(widths)):
                raise UserError(f"integration='none' gives {sum(widths)} channels; leave out integration_channels")
            channels = sum(widths)
        elif channels is None:
            channels = widths[0] if residual else paper.get("integration_channels", widths[0])
        if channels < 1:
            raise UserError(f"integration_channels must be positive, not {channels}")
        reference = next(self.backbone.parameters())
        self.integration = Integration(widths, channels, KERNEL_SIZE[kind], residual, gamma)
        if channels != widths[0]:
            pool = _get_global_pool(self.backbone) or "avg"
            drop_rate = getattr(self.backbone, "drop_rate", 0.0)
            fmt = self.layout
            self.head = ClassifierHead(channels, self.backbone.num_classes, pool, drop_rate, input_fmt=fmt)
            self.head.to(reference.device, reference.dtype)
            self.num_features = channels
            remove_head(self.backbone)
        self.integration.to(reference.device, reference.dtype)

    # ---- what timm asks of a model

    @property
    def num_classes(self) -> int:
        """Size of the classifier; 0 without one."""
        owner = self.backbone if self.head is None else self.head.fc
        return getattr(owner, "num_classes", getattr(owner, "out_features", 0))

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return self.backbone.in_chans

    @property
    def head_hidden_size(self) -> int:
        """Channels of the pre-logits."""
        return self.backbone.head_hidden_size if self.head is None else self.head.num_features

    @property
    def global_pool(self) -> str | None:
        """timm's name for the pooling in front of the classifier."""
        return _get_global_pool(self.backbone) if self.head is None else self.head.global_pool.pool_type

    def get_classifier(self, name_only: bool = False) -> Any:
        """The classifier, or its name in this model; a tuple for backbones with more than one."""
        classifier = self.backbone.get_classifier() if self.head is None else self.head.fc
        if not name_only:
            return classifier
        names = {id(module): name for name, module in self.named_modules()}
        several = isinstance(classifier, (tuple, list))
        return tuple(names[id(part)] for part in classifier) if several else names[id(classifier)]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0: none), and the pooling unless it is None ("": none)."""
        if self.head is not None:
            self.head.reset(num_classes, global_pool)
        elif global_pool is None:
            self.backbone.reset_classifier(num_classes)
        else:
            self.backbone.reset_classifier(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass; running statistics are still updated once a step."""
        for part in (self.backbone, *(stage.backbone for stage in self.stages.values())):
            part.set_grad_checkpointing(enable)
        update_statistics_once(self, enable)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that timm's optimizers leave out of weight decay, each stage's own among them."""
        names = {f"backbone.{name}" for name in getattr(self.backbone, "no_weight_decay", set)()}
        own = {f"stages.{number}.{name}" for number in self.stages for name in names}
        return names | (own & {name for name, _ in self.named_parameters()})  # a shared one has the backbone's name

    def group_matcher(self, coarse: bool = False) -> Any:
        """Regular expressions for timm's layer-wise grouping: a stage's norms go with the backbone's."""

        def inside(pattern: Any) -> Any:
            if not isinstance(pattern, str):  # a list of (pattern, ordinal)
                return [(inside(one), ordinal) for one, ordinal in pattern]
            pattern = re.sub(r"(^|[|(])\^", r"\1", pattern)  # the anchor moves to the front
            return rf"^(?:stages\.\d+\.)?backbone\.(?:{pattern})"

        own: Any = getattr(self.backbone, "group_matcher", lambda coarse: GROUPS)(coarse=coarse)
        if callable(own):  # CaiT: a function from a parameter's name to its group
            return lambda name: own(re.sub(r"^(stages\.\d+\.)?backbone\.", "", name))
        return {group: inside(pattern) for group, pattern in own.items()}

    # ---- forward

    def pyramid(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, H, W) → S images of (B, C, H / 2^(s-1), W / 2^(s-1)), by 2×2 average pooling."""
        check_size(image, len(self.stages) + 1)
        images = [image]
        for _ in self.stages:
            images.append(F.avg_pool2d(images[-1], 2))
        return images

    def stage_maps(self, x: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
        """(B, in_chans, H, W) → the backbone's features, and S maps (B, C_s, h, w) that wait for their integration."""
        images = self.pyramid(x)
        if self.map_apart:
            features, (f1,) = self.backbone.forward_intermediates(images[0], indices=1)
        else:
            features = self.backbone.forward_features(images[0])  # first, since then it draws its random numbers first
            f1 = features
        f1 = to_map(f1, x, self.reduction, "NCHW" if self.map_apart else self.layout)  # (B, C1, h, w)
        others = [stage(image, f1) for stage, image in zip(self.shallow_stages(), images[1:], strict=True)]
        return features, [f1, *others]

    def forward_features(self, x: torch.Tensor) -> Any:
        """(B, in_chans, H, W) → the integrated map (B, num_features, h, w), laid out as the backbone's features.

        Where these are tokens, the map is added to those of the patches, and its mean to the class token's.
        """
        if self.integration is None:
            return self.backbone.forward_features(x)
        features, maps = self.stage_maps(x)
        return self.merged(features, self.integration(maps))

    def merged(self, features: Any, x: torch.Tensor) -> Any:
        """The backbone's features with the integrated map (B, C, h, w); of several features in the last."""
        if isinstance(features, (list, tuple)):  # here, where torch.fx follows; it does not look into `merge`
            return [*features[:-1], merge(features[-1], x, self.layout, self.residual)]
        return merge(features, x, self.layout, self.residual)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, num_features, h, w) → (B, num_classes), or (B, head_hidden_size) with `pre_logits`."""
        head = self.backbone.forward_head if self.head is None else self.head
        return head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    # ---- state dict: every tensor once

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._ties = duplicate_keys(self)  # for `assign=True`, which puts in new tensors
        for key, owner in self._ties:
            if prefix + owner in state_dict:
                state_dict[prefix + key] = state_dict[prefix + owner]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "WsmsNet":
        ties = duplicate_keys(self)  # before fn puts in new tensors
        super()._apply(fn, recurse)
        tie(self, ties)
        return self


def _drop_duplicates(model: WsmsNet, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for key, _ in duplicate_keys(model):
        state_dict.pop(prefix + key, None)  # None: buffers that are not persistent


def _tie_again(model: WsmsNet, _incompatible_keys: Any) -> None:
    tie(model, model.__dict__.pop("_ties", []))


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise UserError(f"{name} must be one of {', '.join(get_args(choices))}; not {value!r}")


@register_notrace_function  # torch.fx finds no names that begin with an underscore
def check_size(image: torch.Tensor, stages: int) -> None:
    """Raise a UserError if the smallest image of the pyramid had no pixel."""
    height, width = image.shape[-2:]
    side = 2 ** (stages - 1)
    if height < side or width < side:
        raise UserError(
            f"an image of {height}×{width} pixels is too small for {stages} stages: give at least {side}×{side}, or "
            "fewer stages"
        )


def _choose_levels(backbone: TimmModel, stages: int | None) -> list[Level]:
    flat = is_flat(backbone)
    most = len(backbone.feature_info) if flat else len(levels(backbone))
    if stages is None:
        stages = min(3, most)
    if not 1 <= stages <= most:
        what = "blocks" if flat else "levels"
        raise UserError(f"stages must be 1 to {most}, the {what} of this backbone; not {stages}")
    return parts(backbone, stages) if flat else levels(backbone)[:stages]


def _layout(backbone: TimmModel) -> Layout:
    if isinstance(backbone, EfficientViM):
        return "NCL"
    fmt = getattr(backbone, "output_fmt", "NCHW")
    return "NHWC" if str(getattr(fmt, "value", fmt)).upper() == "NHWC" else "NCHW"
