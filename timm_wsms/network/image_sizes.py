"""A backbone for images of another size: how it is built, and what its images are padded to."""

from collections.abc import Callable
from typing import Any

from timm.layers import DropBlock2d, to_2tuple
from torch import nn

from timm_wsms.network.backbone_traits import Size, TimmModel, traits_of
from timm_wsms.network.weight_sharing import UnsharedNorms, build_sharing, copy_sharing


def size_arguments(backbone: TimmModel, factor: float, multiple: int, img_size: int | Size | None) -> dict[str, Any]:
    """The arguments of the backbone for images of another size; none if it takes any size.

    Args:
        backbone: For images of `img_size`.
        factor: The other size divided by that.
        multiple: The sides are rounded up to a multiple of N pixels.
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
    """Another copy of the whole backbone, for a stage.

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

    def build() -> TimmModel:
        return build_backbone(pretrained=False, **arguments)

    return build_sharing(build, backbone, unshared_norms, aspect=height / width)


def whole_multiple(backbone: TimmModel, reduction: int, flat: bool) -> int:
    """The sides of the images of a backbone that is not cut must be a multiple of N pixels.

    Its modules decide this as well as its class: a ByobNet or a ResNet is assembled from arguments.

    Args:
        backbone: As timm builds it.
        reduction: Reduction of its last map.
        flat: Whether it keeps one resolution: then only whole patches are possible.
    """
    modules = [*backbone.modules()]
    # of halo and bilinear attention; DropBlock's is of what it drops
    blocks = max(getattr(module, "block_size", 1) for module in modules if not isinstance(module, DropBlock2d))
    attends = blocks > 1 or any(hasattr(module, "self_attn") for module in modules)  # BoTNet: positions of whole maps
    # next to a convolution that rounds odd sides up, this pooling rounds them down (resnetaa50)
    pooled = any(isinstance(getattr(module, "aa", None), nn.AvgPool2d) for module in modules)
    if flat or attends or pooled:
        return reduction * blocks
    return traits_of(backbone).multiple_and_minimum(whole=True)[0]
