"""What a network of stages must know of a backbone's class that timm does not say: one table, one row per class.

Rows are found by the class's name along its method resolution order, so that no architecture has to be imported; a test
checks that every name is still a class of the installed timm. docs/add_a_backbone_family.md says when a row is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

Layout = Literal["NCHW", "NHWC", "NCL"]  # with 3 axes, "NCL" is channels first, the others tokens
Size = tuple[int, int]  # height and width in pixels
TimmModel = Any  # an nn.Module with timm's interface, which the type nn.Module does not describe
OWNERS = ("timm.", "timm_wsms.")  # whose classes the table is about


@dataclass(frozen=True)
class BackboneTraits:
    """Facts about a class of backbones; the defaults hold for most.

    Attributes:
        image_multiple: The sides of the images of a stage that is cut from it must be a multiple of N pixels; smaller
            images are padded at the right and the bottom.
        image_minimum: … and at least N pixels.
        whole_multiple: `image_multiple` where the backbone is not cut (`fusion="mean"`); None: the same.
        whole_minimum: `image_minimum` where it is not cut; None: the same.
        takes_any_size: timm gives it a fixed image size, but nothing before its last level depends on it.
        one_size: Uncut, it takes images of one size only, and it has no `img_size`.
        window_arguments: Arguments that keep stage 1's windows where timm derives them from the image size: (backbone,
            image size, size of stage 1's image divided by that) → arguments.
        preactivation_end: Path of the norm–activation, or activation, that closes a pre-activation backbone. A stage
            that ends earlier gets an end like it.
        neck: Path of the layer between the last map and the features, for a neck as wide as that map.
        mixes_resolutions: Its blocks see several resolutions at once, so a stage cut from it has unused parts.
        several_features: `forward_features` gives a list; `num_features` is the sum of its widths, or the width of all.
        class_tokens_only: `forward_features` gives class tokens without patches.
        layout: Layout of its features; None: what timm's `output_fmt` says, or NCHW.
    """

    image_multiple: int = 1
    image_minimum: int = 1
    whole_multiple: int | None = None
    whole_minimum: int | None = None
    takes_any_size: bool = False
    one_size: bool = False
    window_arguments: Callable[[TimmModel, Size, int], dict[str, Any]] | None = None
    preactivation_end: str | None = None
    neck: str | None = None
    mixes_resolutions: bool = False
    several_features: bool = False
    class_tokens_only: bool = False
    layout: Layout | None = None

    def multiple_and_minimum(self, whole: bool) -> tuple[int, int]:
        """Multiple and minimum of the image's sides in pixels, for a backbone that is run whole or cut."""
        multiple, minimum = (self.whole_multiple, self.whole_minimum) if whole else (None, None)
        return multiple or self.image_multiple, minimum or self.image_minimum


def _maxvit_windows(backbone: TimmModel, size: Size, divisor: int) -> dict[str, Any]:
    return {"transformer_partition_ratio": backbone.partition_ratio // divisor}


def _swinv2_cr_windows(backbone: TimmModel, size: Size, divisor: int) -> dict[str, Any]:
    return {"window_size": backbone.window_size}


def _gcvit_windows(backbone: TimmModel, size: Size, divisor: int) -> dict[str, Any]:
    def of(stage: Any, reduction: int) -> Size:
        height, width = (
            max(1, min(own, side // reduction)) for own, side in zip(stage.blocks[0].window_size, size, strict=True)
        )
        return height, width

    pairs = zip(backbone.stages, backbone.feature_info, strict=True)
    return {"window_size": tuple(of(stage, entry["reduction"]) for stage, entry in pairs)}


TRAITS: dict[str, BackboneTraits] = {
    # pre-activation, closed by a norm–activation
    "CifarDenseNet": BackboneTraits(preactivation_end="features.norm"),
    # the blocks that run in parallel resize each other's maps by powers of two; its features are one per level
    "CoaT": BackboneTraits(image_multiple=32, several_features=True),
    # pre-activation, as below wherever there is a `preactivation_end`
    "DenseNet": BackboneTraits(preactivation_end="features.norm5"),
    # its trees add maps that were halved in one step to maps that were halved by pooling
    "DLA": BackboneTraits(whole_multiple=32),
    "DPN": BackboneTraits(preactivation_end="features.conv5_bn_ac"),
    # the attention of its last level is built for one size
    "EfficientFormer": BackboneTraits(takes_any_size=True, one_size=True),
    # attention with a strided convolution next to it: halves of odd maps differ
    "EfficientFormerV2": BackboneTraits(image_multiple=32),
    # 1×1 convolution after the last map
    "EfficientNet": BackboneTraits(neck="conv_head"),
    # its state-space mixers carry hidden states of all levels to the head
    "EfficientViM": BackboneTraits(mixes_resolutions=True, several_features=True, layout="NCL"),
    # windows divide the map of each level
    "GlobalContextVit": BackboneTraits(whole_multiple=32, window_arguments=_gcvit_windows),
    # mask units divide the grid of patches
    "Hiera": BackboneTraits(image_multiple=32),
    "HieraDet": BackboneTraits(image_multiple=32),
    # the maps of all resolutions are added to each other
    "HighResolutionNet": BackboneTraits(image_multiple=32, mixes_resolutions=True),
    # convolutions without padding: a smaller image leaves no pixel for a kernel
    "InceptionResnetV2": BackboneTraits(image_minimum=43, whole_minimum=75),
    "InceptionV3": BackboneTraits(image_minimum=43, whole_minimum=75),
    "InceptionV4": BackboneTraits(image_minimum=43, whole_minimum=75),
    # attention biases by offset on the whole map
    "Levit": BackboneTraits(image_multiple=16),
    # windows and grids divide the map of each level
    "MaxxVit": BackboneTraits(whole_multiple=32, window_arguments=_maxvit_windows),
    # blocks of patches divide the map of each level
    "Nest": BackboneTraits(image_multiple=32),
    # the pooling of its keys and values needs a map of a minimum size
    "NextViT": BackboneTraits(image_minimum=28),
    "NormFreeNet": BackboneTraits(preactivation_end="final_act"),
    # PiT: the map goes on to the end, but only the class tokens are returned
    "PoolingVisionTransformer": BackboneTraits(class_tokens_only=True),
    # the convolution that reduces its keys and values is not padded
    "PyramidVisionTransformerV2": BackboneTraits(image_minimum=32),
    # the same layer is an activation in pre-activation RegNets, a convolution in others
    "RegNet": BackboneTraits(preactivation_end="final_conv", neck="final_conv"),
    "ResNetV2": BackboneTraits(preactivation_end="norm"),
    # it takes `img_size` and does not use it
    "SwiftFormer": BackboneTraits(takes_any_size=True),
    # timm derives windows from the grid of patches, so a stage's would be smaller than stage 1's
    "SwinTransformerV2Cr": BackboneTraits(window_arguments=_swinv2_cr_windows),
    # it has no table of positions; its windows pad the map
    "Twins": BackboneTraits(takes_any_size=True, whole_multiple=32),
    "XceptionAligned": BackboneTraits(preactivation_end="act"),
}
DEFAULT = BackboneTraits()


def traits_of(backbone: TimmModel) -> BackboneTraits:
    """The row of the backbone's class, or of the nearest class that it inherits from; the defaults without one."""
    names = (kind.__name__ for kind in type(backbone).__mro__ if kind.__module__.startswith(OWNERS))
    return next((TRAITS[name] for name in names if name in TRAITS), DEFAULT)


def has_neck(backbone: TimmModel) -> bool:
    """Whether a layer stands between the backbone's last map and its features."""
    path = traits_of(backbone).neck
    return path is not None and not isinstance(backbone.get_submodule(path), nn.Identity)


def feature_layout(backbone: TimmModel) -> Layout:
    """How the features of a backbone, or of any timm model, are laid out."""
    fmt = getattr(backbone, "output_fmt", "NCHW")
    given: Layout = "NHWC" if str(getattr(fmt, "value", fmt)).upper() == "NHWC" else "NCHW"
    return traits_of(backbone).layout or given
