"""The multi-stage network of averaged logits: every stage is the whole backbone, and their logits are averaged.

An average of predictions at several sizes does not depend on which stage saw an object at the size it was learned at
(scale channels; Jansson and Lindeberg, 2022). The output of layers after a concatenation does depend on it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.fx
from timm.layers import Format, nchw_to

from timm_wsms.errors import UserError, check_choice
from timm_wsms.network.averaging import average_features, average_maps
from timm_wsms.network.backbone_traits import Layout, Size, TimmModel, feature_layout, traits_of
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.image_sizes import build_part, size_arguments, whole_multiple
from timm_wsms.network.pyramid import choose_factors
from timm_wsms.network.stages import is_flat, levels, levels_info
from timm_wsms.network.weight_sharing import UnsharedNorms, share_new
from timm_wsms.network.whole_stage import WholeStage


class StageOutputs(NamedTuple):
    """What each stage returns in training.

    Attributes:
        logits: (S, B, num_classes), stage 1's first.
        features: The classifiers' inputs, (S, B, head_hidden_size); None if not requested. With `drop_rate` they have
            their own dropout mask, not that of `logits`.
    """

    logits: torch.Tensor
    features: torch.Tensor | None = None


class WsmsMeanNet(MultiStageNet):
    """A timm backbone run on the image at several sizes; its logits are averaged.

    ```
    image ─┬──────► stage 1: the backbone ─► logits ─┐
           ├ × 0.5 ► stage 2: the backbone ─► logits ─┼► mean
           └ × 0.25 ► stage 3: the backbone ─► logits ─┘
    ```

    All parameters are shared, in the head too, except those of norms (see `unshared_norms`) and those whose shape
    depends on the image size. Each stage samples its own dropout mask.

    `forward` averages logits. `forward_features`, `forward_intermediates` and `features_only=True` average, level by
    level, the stages' maps, each brought to stage 1's height and width (bilinear) and then shifted per channel so that
    its spatial mean stays the stage's own. `stage_features` returns those of each stage.

    Args:
        build_backbone: As in `WsmsNet`.
        stages: Number of stages, S; None: as many as the pyramid has, or 3.
        pyramid: Size of each stage's image divided by the image's, in any order; one of them is 1 (stage 1). None: 1,
            1/2, 1/4 …, made by average pooling; others are made by bilinear interpolation with antialiasing.
        share_weights: False: a backbone of its own for every stage, with nothing shared.
        unshared_norms: As in `WsmsNet`.
        img_size: As in `WsmsNet`.

    Raises:
        UserError: If the backbone or the arguments do not allow it; the message names the remedy.
    """

    starts_as_backbone = True
    stagewise_training = False
    stagewise_features = False
    layout: Layout

    def __init__(
        self,
        build_backbone: Callable[..., TimmModel],
        stages: int | None = None,
        pyramid: Sequence[float] | None = None,
        share_weights: bool = True,
        unshared_norms: UnsharedNorms = "batch",
        img_size: int | Size | None = None,
    ):
        check_choice("unshared_norms", unshared_norms, UnsharedNorms)
        factors = choose_factors(pyramid, stages)
        super().__init__(backbone := build_backbone())
        traits = traits_of(backbone)
        if len(factors) > 1 and traits.one_size:
            raise UserError(f"{type(backbone).__name__} takes images of one size only; leave out fusion='mean'")
        self.share_weights, self.unshared_norms = share_weights, unshared_norms
        self.layout = feature_layout(backbone)
        self.feature_info = levels_info(backbone)
        multiple = whole_multiple(backbone, levels(backbone)[0].reduction, is_flat(backbone))
        minimum = traits.multiple_and_minimum(whole=True)[1]
        for number, factor in enumerate(factors[1:], start=2):
            arguments = size_arguments(backbone, factor, multiple, img_size)
            part = build_part(build_backbone, backbone, arguments, share_weights, unshared_norms)
            self.stages[str(number)] = WholeStage(part, factor, multiple, minimum)
        self.record_sharing()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier of every stage (0: none), and the pooling unless it is None ("": none)."""
        kept = {*self.modules()}
        self.forget_sharing()
        self._reset_heads(self.backbones(), num_classes, global_pool)
        for part in self.backbones() if self.share_weights else ():
            share_new(part, self.backbone, kept, self.unshared_norms)
        self.record_sharing()

    def set_stagewise_training(self, enable: bool = True, features: bool = False) -> None:
        """In training mode, return `StageOutputs`: the logits of every stage instead of their mean.

        For a loss per stage in addition to the mean's: trained by the mean's loss alone, a stage learns to correct the
        others and predicts poorly on its own. In eval mode the network returns the mean as before.

        Args:
            enable: False returns to the mean.
            features: Return the stages' pooled features too.
        """
        self.stagewise_training, self.stagewise_features = enable, features

    # ---- logits

    def stage_images(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, in_chans, H, W) → the images (B, in_chans, h, w) that the stages' backbones see, some of them padded."""
        return self._pad(self.pyramid(x))

    def stage_features(self, x: torch.Tensor) -> list[Any]:
        """(B, in_chans, H, W) → the features of every stage, in the backbone's layout and for its image's size."""
        return self._stage_features(self.pyramid(x))

    def _stage_features(self, images: Sequence[torch.Tensor]) -> list[Any]:
        features = self.stage1_features(images[0])  # first, since then it draws its random numbers first
        return [features, *(stage(image) for stage, image in zip(self.stages.values(), images[1:], strict=True))]

    def stage_heads(self, features: Sequence[Any], pre_logits: bool = False) -> list[torch.Tensor]:
        """The features of every stage → its logits (B, num_classes), or (B, head_hidden_size) with `pre_logits`."""
        parts = zip(self.backbones(), features, strict=True)
        return [part.forward_head(own, pre_logits=pre_logits) for part, own in parts]

    def stage_logits(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → the logits of every stage (S, B, num_classes), stage 1's first."""
        return torch.stack(self.stage_heads(self.stage_features(x)))

    def forward(self, x: torch.Tensor) -> Any:
        """(B, in_chans, H, W) → the mean of the stages' logits (B, num_classes).

        In training mode after `set_stagewise_training`, returns `StageOutputs`. Without pooling
        (`reset_classifier(0, "")`) there are no logits, and it returns what `forward_features` does.
        """
        if self.global_pool == "":
            return self.forward_head(self.forward_features(x))
        features = self.stage_features(x)
        each = torch.stack(self.stage_heads(features))
        if not (self.training and self.stagewise_training):
            return each.mean(0)
        pooled = torch.stack(self.stage_heads(features, pre_logits=True)) if self.stagewise_features else None
        return StageOutputs(each, pooled)

    # ---- features

    def forward_features(self, x: torch.Tensor) -> Any:
        """(B, in_chans, H, W) → the average of the stages' features, laid out as the backbone's.

        Tokens that have no place (class and register tokens) are averaged as they are.
        """
        images = self.pyramid(x)
        return self._average(self._stage_features(images), images)

    def forward_head(self, x: Any, pre_logits: bool = False) -> torch.Tensor:
        """Features → (B, num_classes), or (B, head_hidden_size) with `pre_logits`: stage 1's head.

        For the output of `forward_features`, these are the logits of `forward` up to rounding if the head is average
        pooling, or a class token, and one linear layer that all stages share. With other heads they are not: a norm
        or an activation after the pooling, and max pooling, are applied to the average instead of to each stage;
        with `share_weights=False` each stage has a classifier of its own, and this is stage 1's.
        """
        return self.backbone.forward_head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of the backbone's levels, as timm's models return them, each the average of the stages' maps.

        Args:
            x: (B, in_chans, H, W).
            indices: The last n levels if an int, all if None.
            norm: Apply the backbone's last norm to its maps.
            stop_early: Leave out what comes after the deepest of the levels.
            output_fmt: "NCHW", "NHWC" or "NLC".
            intermediates_only: Return only the list of maps.

        Returns:
            The result of `forward_features` and the maps, (B, C, h, w) each with stage 1's h and w. With `stop_early`,
            the former is the output of the last block of the backbone that was run.
        """
        images = self.pyramid(x)
        padded = self._pad(images)
        arguments = {"indices": indices, "norm": norm, "stop_early": stop_early}
        given = [
            part.forward_intermediates(image, **arguments, intermediates_only=intermediates_only)
            for part, image in zip(self.backbones(), padded, strict=True)
        ]
        maps = given if intermediates_only else [found for _, found in given]
        result = [nchw_to(average_maps(level, padded, images), Format(output_fmt)) for level in zip(*maps, strict=True)]
        return result if intermediates_only else (self._average([features for features, _ in given], images), result)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what `forward_intermediates` does not need for some of the levels; returns their positions."""
        self.forget_sharing()
        taken = [part.prune_intermediate_layers(indices, prune_norm, prune_head) for part in self.backbones()]
        self.record_sharing()
        return [*taken[0]]

    def _pad(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        stages: list[Any] = [*self.stages.values()]
        return [images[0], *(stage.pad(image) for stage, image in zip(stages, images[1:], strict=True))]

    def _average(self, features: Sequence[Any], images: Sequence[torch.Tensor]) -> Any:
        reductions = [entry["reduction"] for entry in self.feature_info]
        return average_features(features, self._pad(images), images, reductions, self.layout)
