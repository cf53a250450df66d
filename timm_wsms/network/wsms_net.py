"""The weight-shared multi-stage network (Takahashi et al., ACML 2017, Section 3): image → pyramid → stages → head."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead
from torch import nn

from timm_wsms.errors import UserError, check_choice
from timm_wsms.network.backbone_traits import Size, TimmModel, feature_layout, has_neck, traits_of
from timm_wsms.network.base import pooling
from timm_wsms.network.features import FeatureMaps
from timm_wsms.network.integration import Integration, IntegrationKind
from timm_wsms.network.layouts import merge, to_map
from timm_wsms.network.pyramid import choose_factors, halvings
from timm_wsms.network.stages import Level, is_flat, levels, levels_info, make_stage, parts
from timm_wsms.network.unused_layers import remove_head
from timm_wsms.network.weight_sharing import UnsharedNorms
from timm_wsms.utils import take_indices

KERNEL_SIZE = {"conv1x1": 1, "conv3x3": 3, "none": 0}


class WsmsNet(FeatureMaps):
    """A timm backbone run on the image, its half-size copy, its quarter-size copy …; the maps are integrated.

    ```
    image ─┬──────────────► stage 1: the whole backbone       ─► f1 (B, C1, h, w)
           └ avg-pool 2×2 ─┬► stage 2: its blocks up to R/2   ─► f2 (B, C2, h, w)
                           └ avg-pool 2×2 ─► stage 3: to R/4  ─► f3 (B, C3, h, w)
    concat(f1, f2, f3) ─► integration ─► global pool ─► classifier
    ```

    Args:
        build_backbone: Returns the backbone, a timm model. Called once without arguments, and once more per stage
            where nothing is shared or where parameters depend on the image size: then with `img_size` and the like.
        stages: Number of stages, S; None: 3, or the number of levels of a backbone that has fewer. 1: the backbone.
        integration: "conv1x1", "conv3x3" or "none" (paper, Fig. 3).
        integration_channels: Channels of the integrated map, c. None: f1's, or the paper's for its own backbones.
        residual: Add the integrated map, weighted by γ, to f1 instead of replacing f1 by it. None: True except
            for the paper's own backbones.
        share_weights: False for the paper's MS-Net: the same shape, nothing shared.
        unshared_norms: Norms of which every stage has its own: "batch" (the paper), "all" or "none"; "statistics": only
            the running statistics of batch norms, while their scales and shifts are shared.
        gamma: Initial value of γ: 0 leaves the backbone's logits as they are.
        img_size: Of the images, in pixels, for a backbone whose parameters depend on it; None: its default.
        feature_pyramid: Integrate the maps of the other levels too, for `forward_intermediates`.
        integrated_indices: With `feature_pyramid`, positions of the maps to integrate, as in `out_indices`; None: all.
            A decoder that takes only some of the maps leaves the integration of the others without gradients.
        pyramid: 1, 1/2, 1/4 …, as many as `stages`; no other factors give maps that fit together.

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
        pyramid: Sequence[float] | None = None,
        integrated_indices: Sequence[int] | None = None,
    ):
        check_choice("integration", integration, IntegrationKind)
        check_choice("unshared_norms", unshared_norms, UnsharedNorms)
        super().__init__(backbone := build_backbone())
        self.layout = feature_layout(backbone)
        cuts = _choose_levels(backbone, stages if pyramid is None else _count_halvings(pyramid, stages))
        paper = getattr(backbone, "wsms_defaults", {})
        residual = paper.get("residual", True) if residual is None else residual

        for number, level in enumerate(cuts[1:], start=2):  # the paper's numbers
            self.stages[str(number)] = make_stage(
                build_backbone, backbone, level, 2 ** (number - 1), img_size, share_weights, unshared_norms
            )
        self.reduction = cuts[0].reduction
        traits = traits_of(backbone)
        self.map_not_in_features = traits.class_tokens_only
        self.has_graph_per_stage = not self.map_not_in_features
        self.feature_info = levels_info(backbone)
        width = self.feature_info[-1]["num_chs"] if traits.several_features else self.num_features
        as_wide = self.feature_info[-1]["num_chs"] == width
        self.replaces_last_map = bool(self.stages) and as_wide and not has_neck(backbone)
        self.residual = residual
        self.integration: Integration | None = None
        if self.stages:
            widths = [width, *(level.channels for level in cuts[1:])]
            self._integrate(widths, integration, integration_channels, residual, gamma, paper)
        if self.replaces_last_map and self.head is not None:
            self.feature_info[-1]["num_chs"] = self.num_features
        if integrated_indices is not None and not feature_pyramid:
            raise UserError("integrated_indices belongs to features_only=True; leave it out")
        count = len(self.feature_info)
        self.integrated = {*take_indices(count, None if integrated_indices is None else [*integrated_indices])[0]}
        self.feature_pyramid = self.make_feature_pyramid(gamma) if feature_pyramid else nn.ModuleDict()
        self.record_sharing()

    def _integrate(
        self, widths: list[int], kind: str, channels: int | None, residual: bool, gamma: float, paper: dict[str, Any]
    ) -> None:
        """Build the integration layer, and a separate head if the integrated map is not as wide as f1."""
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
            pool = pooling(self.backbone) or "avg"
            drop_rate = getattr(self.backbone, "drop_rate", 0.0)
            fmt = self.layout
            self.head = ClassifierHead(channels, self.backbone.num_classes, pool, drop_rate, input_fmt=fmt)
            self.head.to(reference.device, reference.dtype)
            self.num_features = channels
            remove_head(self.backbone)
        self.integration.to(reference.device, reference.dtype)

    @property
    def starts_as_backbone(self) -> bool:
        """Whether γ = 0 gives the backbone's logits."""
        return self.integration is None or self.residual

    def compile_stages(self, **options: Any) -> None:
        """See `MultiStageNet`.

        Raises:
            UserError: For PiT, whose last map `forward_features` does not return.
        """
        if not self.has_graph_per_stage:
            raise UserError(f"{type(self.backbone).__name__} has no graph per stage; use torch.compile(model)")
        super().compile_stages(**options)

    def stage_maps(self, x: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
        """(B, in_chans, H, W) → the backbone's features, and S maps (B, C_s, h, w) to be integrated."""
        images = self.pyramid(x)
        features, f1 = self.stage1_map(images[0])  # first, since then it draws its random numbers first
        others = [stage(image, f1) for stage, image in zip(self.shallow_stages(), images[1:], strict=True)]
        return features, [f1, *others]

    def stage1_map(self, image: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """(B, in_chans, H, W) → the backbone's features, and its last map f1 (B, C_1, h, w)."""
        if self.map_not_in_features:
            features, (f1,) = self.backbone.forward_intermediates(image, indices=1)
            return features, to_map(f1, image, self.reduction, "NCHW")
        features = self.stage1_features(image)
        return features, to_map(features, image, self.reduction, self.layout)

    def forward_features(self, x: torch.Tensor) -> Any:
        """(B, in_chans, H, W) → the integrated map (B, num_features, h, w), laid out as the backbone's features.

        If these are tokens, the map is added to the patch tokens, and its mean to the class token.
        """
        if self.integration is None:
            return self.stage1_features(x)
        features, maps = self.stage_maps(x)
        return self.merged(features, self.integration(maps))

    def merged(self, features: Any, x: torch.Tensor) -> Any:
        """The backbone's features with the integrated map (B, C, h, w); if there are several, in the last."""
        if isinstance(features, (list, tuple)):
            return [*features[:-1], merge(features[-1], x, self.layout, self.residual)]
        return merge(features, x, self.layout, self.residual)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, num_features, h, w) → (B, num_classes), or (B, head_hidden_size) with `pre_logits`."""
        head = self.backbone.forward_head if self.head is None else self.head
        return head(x, pre_logits=pre_logits)


def _count_halvings(pyramid: Sequence[float], stages: int | None) -> int:
    factors = choose_factors(pyramid, stages)
    if factors != halvings(len(factors)):
        raise UserError(
            f"fusion='concat' integrates maps of one size, so its pyramid is 1, 0.5, 0.25 …, not {[*pyramid]}; leave "
            "out pyramid, or give fusion='mean'"
        )
    return len(factors)


def _choose_levels(backbone: TimmModel, stages: int | None) -> list[Level]:
    flat = is_flat(backbone)
    most = len(backbone.feature_info) if flat else len(levels(backbone))
    if stages is None:
        stages = min(3, most)
    if not 1 <= stages <= most:
        what = "blocks" if flat else "levels"
        raise UserError(f"stages must be 1 to {most}, the {what} of this backbone; not {stages}")
    return parts(backbone, stages) if flat else levels(backbone)[:stages]
