"""The layouts in which timm's backbones return their features, and the map (B, C, h, w) in each of them.

Feature maps are NCHW or NHWC; transformers give tokens (B, P + h·w, C), P of them class or register tokens;
EfficientViM gives (B, C, h·w). Of several features (CoaT, EfficientViM), the last is used. The functions
are opaque to torch.fx, since they look at shapes.
"""

from typing import Any

import torch
import torch.nn.functional as F

from timm_wsms.errors import UserError
from timm_wsms.network.backbone_traits import Layout
from timm_wsms.network.fx import opaque


def last_feature(features: Any) -> torch.Tensor:
    """What `forward_features` returns; of several features, the last."""
    return features[-1] if isinstance(features, (list, tuple)) else features


@opaque
def to_map(features: Any, image: torch.Tensor, reduction: int, layout: Layout) -> torch.Tensor:
    """Features in the backbone's layout → (B, C, h, w), without class tokens.

    Args:
        features: What `forward_features` returns.
        image: (B, in_chans, H, W), which the features were computed from.
        reduction: H / h.
        layout: Layout of the features.
    """
    x = last_feature(features)
    if x.ndim == 4:
        return x.permute(0, 3, 1, 2) if layout == "NHWC" else x
    if layout == "NCL":
        x = x.transpose(1, 2)
    height, width = _grid(x.shape[1], image, reduction)
    patches = x[:, x.shape[1] - height * width :]  # class tokens come first
    return patches.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width)


@opaque
def merge(features: torch.Tensor, x: torch.Tensor, layout: Layout, residual: bool) -> torch.Tensor:
    """Add a map to features in the backbone's layout, or put it in their place; class tokens get its spatial mean.

    Args:
        features: What `forward_features` returns, of several the last.
        x: (B, C, h, w).
        layout: Layout of the features.
        residual: Add instead of replacing.
    """
    x = from_map(x, features, layout)
    return with_plain_strides(features) + with_plain_strides(x) if residual else x


def from_map(x: torch.Tensor, like: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(B, C, h, w) → the layout of other features; class tokens are the spatial mean."""
    if like.ndim == 4:
        return x.permute(0, 2, 3, 1) if layout == "NHWC" else x
    if layout == "NCL":
        return x.flatten(2)
    patches = x.flatten(2).transpose(1, 2)  # (B, h·w, C)
    class_tokens = like.shape[1] - patches.shape[1]
    mean = patches.mean(1, keepdim=True)
    if class_tokens < 0:  # no patches among the features (PiT)
        return mean.expand(like.shape)
    return torch.cat((mean.expand(-1, class_tokens, -1), patches), 1) if class_tokens else patches


@opaque
def fit(x: torch.Tensor, like: torch.Tensor, padded: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Resize a stage's map to stage 1's, only if they differ; what belongs to padding is cut off.

    Args:
        x: (B, C_s, …), the map of the padded image.
        like: (B, C_1, h, w).
        padded: (B, in_chans, …), the stage's image, padded at the right and the bottom.
        image: The same before it was padded.

    Returns:
        (B, C_s, h, w)
    """
    height, width = whole = [*like.shape[-2:]]
    known = _are_numbers(*x.shape[-2:], *whole)
    if padded is not image:  # then the map is larger, including what belongs to the padding
        whole = [_ceil_div(whole[axis] * padded.shape[axis], image.shape[axis]) for axis in (-2, -1)]
    if not known or [*x.shape[-2:]] != whole:  # interpolation to the same size is exact
        x = F.interpolate(x, size=whole, mode="bilinear", align_corners=False)
    if padded is image or (known and whole == [height, width]):
        return x
    if known:
        return x[..., :height, :width]
    for axis, size in ((-2, height), (-1, width)):  # in an export the checks of a slice's strides would fix both
        x = x.index_select(axis, torch.arange(size, device=x.device))
    return x


@opaque
def pad_to_multiple(image: torch.Tensor, multiple: int, least: int = 1) -> torch.Tensor:
    """(B, C, H, W) → the same with zeros at the right and the bottom, as timm's dynamic padding, up to a multiple."""
    if multiple == least == 1:
        return image
    sides = image.shape[-2:]
    bottom, right = (_ceil_div(_at_least(side, least), multiple) * multiple - side for side in sides)
    return image if _are_numbers(*sides) and not (right or bottom) else F.pad(image, (0, right, 0, bottom))


def with_plain_strides(x: torch.Tensor) -> torch.Tensor:
    """Itself; in `torch.export` a contiguous copy, since its checks of other strides would fix height and width."""
    return x.contiguous() if torch.compiler.is_exporting() else x


def _are_numbers(*sizes: Any) -> bool:
    """Whether sizes are known: in an export with dynamic sizes they are symbols, in `torch.jit.trace` tensors.

    A branch on these would fix the exported program to the sizes that it was traced with.
    """
    return all(type(size) is int for size in sizes)


def _ceil_div(size: Any, divisor: Any) -> Any:
    return (size + divisor - 1) // divisor  # for positive numbers only: ONNX rounds to zero


def _at_least(size: Any, least: int) -> Any:
    return max(size, least) if _are_numbers(size) else (size + least + abs(size - least)) // 2


def _grid(tokens: int, image: torch.Tensor, reduction: int) -> tuple[int, int]:
    """Height and width of the grid of patches, the largest that this number of tokens can hold.

    An image that the patches do not divide was padded or cut; some backbones merge m×m patches after their last block.
    """
    height, width = image.shape[-2:]
    for merged in range(1, 5):
        side = reduction * merged
        for grid in ((-(-height // side), -(-width // side)), (height // side, width // side)):
            if 0 < grid[0] * grid[1] <= tokens:
                return grid
    raise UserError(f"{tokens} tokens are not a grid of patches of an image of {height}×{width} pixels")
