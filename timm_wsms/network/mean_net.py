"""The second form of the network: every stage is the whole backbone, and their logits are averaged.

What an average of the predictions at several sizes says of an object doesn't depend on which stage saw it at the size
it was learned at (scale channels; Jansson and Lindeberg, 2022); what the layers behind a concatenation say does.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from timm_wsms.errors import UserError, check_choice
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.image_sizes import (
    ONE_SIZE,
    WHOLE_LEAST,
    WHOLE_MULTIPLE,
    Size,
    build_part,
    lookup_by_class,
    size_arguments,
)
from timm_wsms.network.layouts import pad_to_multiple
from timm_wsms.network.pyramid import choose_factors
from timm_wsms.network.stages import is_flat, levels
from timm_wsms.network.weight_sharing import TimmModel, UnsharedNorms, share_dictionaries, share_new


class StageOutputs(NamedTuple):
    """What each stage gives in training.

    Attributes:
        logits: (S, B, num_classes), stage 1's first.
        features: What the classifiers take, (S, B, head_hidden_size); None if it was not asked for.
    """

    logits: torch.Tensor
    features: torch.Tensor | None = None


class WholeStage(nn.Module):
    """A backbone with its head, for one image of the pyramid.

    Args:
        backbone: Built for the image's size.
        factor: Size of its image divided by that of stage 1's.
        multiple: Of so many pixels are the sides of the images that the backbone takes.
        least: So many pixels at least.
    """

    def __init__(self, backbone: TimmModel, factor: float, multiple: int, least: int = 1):
        super().__init__()
        self.backbone, self.factor, self.multiple, self.least = backbone, factor, multiple, least
        self.reduction = levels(backbone)[0].reduction

    def forward(self, image: torch.Tensor) -> Any:
        """(B, in_chans, H, W) → the backbone's features.

        Raises:
            UserError: If the image is too small for the backbone.
        """
        padded = pad_to_multiple(image, self.multiple, self.least)
        try:
            return self.backbone.forward_features(padded)
        except (RuntimeError, ValueError, AssertionError) as error:
            height, width = image.shape[-2:]
            if min(height, width) >= 2 * self.reduction:  # then it is something else
                raise
            what = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" …")
            raise UserError(
                f"{height}×{width} pixels, {self.factor} of the image's size, are too few for the backbone ({what}); "
                f"give larger images, or a pyramid without {self.factor}"
            ) from error


class WsmsMeanNet(MultiStageNet):
    """A timm backbone run on the image at several sizes; its logits are averaged.

    ```
    image ─┬──────► stage 1: the backbone ─► logits ─┐
           ├ × 0.5 ► stage 2: the backbone ─► logits ─┼► mean
           └ × 0.25 ► stage 3: the backbone ─► logits ─┘
    ```

    All parameters are shared but the norms' and those whose shape depends on the image size, in the head too. Dropout
    draws for every stage anew. There is no map of several stages: `forward_intermediates` and `features_only` are the
    other form's, `fusion="concat"`.

    Args:
        build_backbone: As in `WsmsNet`.
        stages: Number of stages, S; None: as many as the pyramid has, or 3.
        pyramid: Size of each stage's image divided by the image's, in any order; one of them is 1 (stage 1). None: 1,
            1/2, 1/4 …, which average pooling makes; others are made by bilinear interpolation with antialiasing.
        share_weights: False: a backbone of its own for every stage, with nothing shared.
        unshared_norms: As in `WsmsNet`.
        img_size: As in `WsmsNet`.

    Raises:
        UserError: If the backbone or the arguments do not allow it; the message names the remedy.
    """

    starts_as_backbone = True
    stagewise_training = False
    stagewise_features = False

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
        if len(factors) > 1 and isinstance(backbone, ONE_SIZE):
            raise UserError(f"{type(backbone).__name__} takes images of one size only; leave out fusion='mean'")
        self.share_weights, self.unshared_norms = share_weights, unshared_norms
        multiple, least = _multiple(backbone), lookup_by_class(WHOLE_LEAST, backbone) or 1
        for number, factor in enumerate(factors[1:], start=2):
            arguments = size_arguments(backbone, factor, multiple, img_size)
            part = build_part(build_backbone, backbone, arguments, share_weights, unshared_norms)
            if share_weights:
                share_dictionaries(part, backbone)
            self.stages[str(number)] = WholeStage(part, factor, multiple, least)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier of every stage (0: none), and the pooling unless it is None ("": none)."""
        kept = {*self.modules()}
        for part in self.backbones():
            part.reset_classifier(num_classes, *(() if global_pool is None else (global_pool,)))
            if self.share_weights:
                share_new(part, self.backbone, kept, self.unshared_norms)

    def set_stagewise_training(self, enable: bool = True, features: bool = False) -> None:
        """Return, in training mode, `StageOutputs`: the logits of every stage instead of their mean.

        For a loss per stage beside that of the mean: trained by the mean's loss alone, a stage learns to correct the
        others and predicts poorly by itself. In eval mode the network returns the mean as before.

        Args:
            enable: False returns to the mean.
            features: Return the stages' pooled features too.
        """
        self.stagewise_training, self.stagewise_features = enable, features

    def forward_features(self, x: torch.Tensor) -> list[Any]:
        """(B, in_chans, H, W) → the features of every stage, in the backbone's layout and for its image's size."""
        first, *others = self.pyramid(x)
        features = self.backbone.forward_features(first)  # first, since then it draws its random numbers first
        return [features, *(stage(image) for stage, image in zip(self.stages.values(), others, strict=True))]

    def forward_head(self, x: Sequence[Any], pre_logits: bool = False) -> Any:
        """The features of every stage → the mean of their logits (B, num_classes), or of (B, head_hidden_size).

        Without pooling (`reset_classifier(0, "")`) what the stages give differs in size: then it is the list of it.
        In training mode after `set_stagewise_training` it is `StageOutputs`.
        """
        found = self._heads(x, pre_logits)
        if self.global_pool == "":
            return found
        each = torch.stack(found)
        if not (self.training and self.stagewise_training):
            return each.mean(0)
        return StageOutputs(each, torch.stack(self._heads(x, pre_logits=True)) if self.stagewise_features else None)

    def stage_logits(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → the logits of every stage (S, B, num_classes), stage 1's first."""
        return torch.stack(self._heads(self.forward_features(x)))

    def _heads(self, x: Sequence[Any], pre_logits: bool = False) -> list[torch.Tensor]:
        parts = zip(self.backbones(), x, strict=True)
        return [part.forward_head(features, pre_logits=pre_logits) for part, features in parts]


def _multiple(backbone: TimmModel) -> int:
    """Of so many pixels are the sides of the images that a whole backbone takes: whole patches, whole blocks."""
    modules = [*backbone.modules()]
    blocks = max(getattr(module, "block_size", 1) for module in modules)  # halo and bilinear attention
    attends = blocks > 1 or any(hasattr(module, "self_attn") for module in modules)  # BoTNet: positions of whole maps
    # beside a convolution that rounds odd sides up, this pooling rounds them down (resnetaa50)
    pooled = any(isinstance(getattr(module, "aa", None), nn.AvgPool2d) for module in modules)
    if is_flat(backbone) or attends or pooled:
        return levels(backbone)[0].reduction * blocks
    return lookup_by_class(WHOLE_MULTIPLE, backbone) or 1
