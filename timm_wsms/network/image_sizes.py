"""A backbone for images of another size: what is built for it, and what its images are padded to."""

from collections.abc import Callable
from typing import Any

from timm.layers import to_2tuple
from timm.models.coat import CoaT
from timm.models.dla import DLA
from timm.models.efficientformer import EfficientFormer
from timm.models.efficientformer_v2 import EfficientFormerV2
from timm.models.gcvit import GlobalContextVit
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet
from timm.models.hrnet import HighResolutionNet
from timm.models.inception_resnet_v2 import InceptionResnetV2
from timm.models.inception_v3 import InceptionV3
from timm.models.inception_v4 import InceptionV4
from timm.models.levit import Levit
from timm.models.maxxvit import MaxxVit
from timm.models.nest import Nest
from timm.models.nextvit import NextViT
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swiftformer import SwiftFormer
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.twins import Twins
from torch import nn

from timm_wsms.network.weight_sharing import TimmModel, UnsharedNorms, build_sharing, copy_sharing

Size = tuple[int, int]  # height and width in pixels

# timm gives these a fixed image size, but up to where a stage is cut nothing depends on it.
TAKE_ANY_SIZE = (EfficientFormer, SwiftFormer, Twins)
# The image of a stage is padded to a multiple of so many pixels: what its blocks, or their tables, divide evenly.
IMAGE_MULTIPLE: dict[type[nn.Module], int] = {
    CoaT: 32,
    EfficientFormerV2: 32,
    Hiera: 32,
    HieraDet: 32,
    HighResolutionNet: 32,
    Levit: 16,
    Nest: 32,
}
# … and to at least so many: below, a kernel without padding would not fit into a map.
IMAGE_LEAST: dict[type[nn.Module], int] = {
    InceptionResnetV2: 43,
    InceptionV3: 43,
    InceptionV4: 43,
    NextViT: 28,
    PyramidVisionTransformerV2: 32,
}
# The same for a backbone that is not cut.
WHOLE_MULTIPLE: dict[type[nn.Module], int] = IMAGE_MULTIPLE | {
    DLA: 32,
    GlobalContextVit: 32,
    MaxxVit: 32,
    Twins: 32,
}
WHOLE_LEAST: dict[type[nn.Module], int] = {InceptionResnetV2: 75, InceptionV3: 75, InceptionV4: 75}
ONE_SIZE = (EfficientFormer,)  # whole, these take images of no size but one, and have no `img_size`
# How windows keep stage 1's size where timm derives them from the image: (backbone, image size, divisor) → arguments
WINDOWS: dict[type[nn.Module], Callable[[TimmModel, Size, int], dict[str, Any]]] = {
    MaxxVit: lambda backbone, size, divisor: {"transformer_partition_ratio": backbone.partition_ratio // divisor},
    SwinTransformerV2Cr: lambda backbone, size, divisor: {"window_size": backbone.window_size},
    GlobalContextVit: lambda backbone, size, divisor: {
        "window_size": tuple(
            tuple(max(1, min(own, side // entry["reduction"])) for own, side in zip(_window(stage), size, strict=True))
            for stage, entry in zip(backbone.stages, backbone.feature_info, strict=True)
        )
    },
}


def size_arguments(backbone: TimmModel, factor: float, multiple: int, img_size: int | Size | None) -> dict[str, Any]:
    """The arguments of the backbone for images of another size; none if it takes any size.

    Args:
        backbone: For images of `img_size`.
        factor: The other size divided by that.
        multiple: The sides are rounded up to a multiple of so many pixels.
        img_size: None: the backbone's default.
    """
    cfg = getattr(backbone, "default_cfg", {})
    if not cfg.get("fixed_input_size"):
        return {}
    sides = to_2tuple(img_size or cfg["input_size"][1:])
    return {"img_size": tuple(-(-int(side * factor) // multiple) * multiple for side in sides)}


def build_part(
    build_backbone: Callable[..., TimmModel],
    backbone: TimmModel,
    arguments: dict[str, Any],
    share_weights: bool,
    unshared_norms: UnsharedNorms,
) -> TimmModel:
    """The whole backbone once more, for a stage.

    Args:
        build_backbone: Returns the backbone; takes the arguments.
        backbone: Stage 1.
        arguments: From `size_arguments`.
        share_weights: As in `WsmsNet`.
        unshared_norms: As in `WsmsNet`.
    """
    if not share_weights:
        return build_backbone(**arguments)
    if not arguments:
        return copy_sharing(backbone, unshared_norms)
    height, width = arguments["img_size"]
    build = lambda: build_backbone(pretrained=False, **arguments)  # noqa: E731
    return build_sharing(build, backbone, unshared_norms, aspect=height / width)


def lookup_by_class(table: dict[type[nn.Module], Any], backbone: TimmModel) -> Any:
    """What a table says of the backbone's class; None if nothing."""
    return next((value for kind, value in table.items() if isinstance(backbone, kind)), None)


def _window(stage: Any) -> Size:
    return stage.blocks[0].window_size
