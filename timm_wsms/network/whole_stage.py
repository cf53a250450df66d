"""Stage 2 or deeper of a network of averaged logits: the whole backbone, for an image of another size."""

from typing import Any

import torch
import torch.fx
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.network.backbone_traits import TimmModel
from timm_wsms.network.fx import FeatureCall
from timm_wsms.network.layouts import pad_to_multiple
from timm_wsms.network.stages import levels
from timm_wsms.utils import eval_mode, shorten


class WholeStage(nn.Module):
    """A backbone with its head, for one image of the pyramid.

    Args:
        backbone: Built for the image's size.
        factor: Size of its image divided by that of stage 1's.
        multiple: The sides of the images that the backbone takes must be a multiple of N pixels …
        minimum: … and at least N pixels.
    """

    def __init__(self, backbone: TimmModel, factor: float, multiple: int, minimum: int = 1):
        super().__init__()
        self.backbone, self.factor, self.multiple, self.minimum = backbone, factor, multiple, minimum
        self.reduction = levels(backbone)[0].reduction
        self.backbone_features = FeatureCall(type(backbone))

    def pad(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → the same with zeros at the right and the bottom, as the backbone takes it."""
        return pad_to_multiple(image, self.multiple, self.minimum)

    def forward(self, image: torch.Tensor) -> Any:
        """(B, in_chans, H, W) → the backbone's features.

        Raises:
            UserError: If the image is too small for the backbone.
        """
        padded = self.pad(image)
        if isinstance(padded, torch.fx.Proxy):
            return self.backbone_features(self.backbone, padded)
        try:
            return self.backbone.forward_features(padded)
        except (RuntimeError, ValueError, AssertionError) as error:
            if not self._is_too_small(padded):
                raise
            height, width = image.shape[-2:]
            raise UserError(
                f"{height}×{width} pixels, {self.factor} of the image's size, are too few for the backbone "
                f"({shorten(error)}); give larger images, or a pyramid without {self.factor}"
            ) from error

    def _is_too_small(self, image: torch.Tensor) -> bool:
        """Whether the backbone, which failed on an image, accepts one that is larger and otherwise the same."""
        side = 8 * self.reduction
        if min(image.shape[-2:]) >= side:
            return False
        try:
            with eval_mode(self.backbone):
                self.backbone.forward_features(image.new_zeros(*image.shape[:2], side, side))
        except Exception:  # whatever the reason is, it is not the size
            return False
        return True
