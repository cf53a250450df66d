"""`features_only=True`: a WSMS-Net as a pyramid of feature maps, for detection and segmentation."""

from collections.abc import Sequence
from typing import Any

from timm.models._features import FeatureGetterNet

from timm_wsms.network import WsmsNet
from timm_wsms.stages import is_flat


class WsmsFeatures(FeatureGetterNet):
    """The maps of a WsmsNet's levels, each with the stages' maps of its resolution integrated.

    Args:
        model: Built with `feature_pyramid`.
        out_indices: Positions of the levels; None: all of them, or the last three blocks of a backbone that keeps one
            resolution, as timm has it.
        **kwargs: Of `FeatureGetterNet`.
    """

    def __init__(self, model: WsmsNet, out_indices: int | Sequence[int] | None = None, **kwargs: Any):
        if out_indices is None:
            depth = len(model.feature_info)
            out_indices = min(3, depth) if is_flat(model.backbone) else depth
        super().__init__(model, out_indices, **kwargs)  # type: ignore[arg-type]
