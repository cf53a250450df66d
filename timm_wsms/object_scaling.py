"""The same picture with a smaller or a larger object: shrunk onto a canvas of its size, or zoomed about its center.

An image is resampled along its height and along its width by one matrix each, made for the exact factor, so that
nothing is rounded to whole pixels and the center stays where it is.
"""

import math
from typing import Literal, get_args

import torch

from timm_wsms.errors import UserError

Border = Literal["mean", "edge", "reflect", "blur"]
BLUR = 1 / 8  # standard deviation of the blurred background, as part of the image's side


def rescale_object(images: torch.Tensor, factor: float | torch.Tensor, border: Border = "mean") -> torch.Tensor:
    """Shows what is on the images `factor` times as large, on a canvas of the same size.

    Bicubic with antialiasing (Pillow's filter: a = -0.5, widened by 1 / factor when shrinking), kept within the range
    of each image's channel, as pixels are. What a shrunk image does not cover is the border; a pixel that it covers
    in part is a mixture.

    Args:
        images: Floating point, (B, C, H, W); values in any range, normalized or not.
        factor: Size of the object afterwards divided by its size before; 1 gives `images` themselves. One number for
            all images, or (B,).
        border: "mean": each image's mean color; "edge": that of its outermost pixels, which continues a plain
            background; "reflect": the image continues, mirrored at its edges, repeatedly; "blur": the image itself
            at its old size, blurred (Gaussian, standard deviation an eighth of the side).

    Returns:
        (B, C, H, W)

    Raises:
        UserError: `factor` is not positive, or there is no such border.
    """
    if isinstance(factor, torch.Tensor) and factor.device.type == "mps":  # has no float64
        factor = factor.cpu()
    factors = torch.as_tensor(factor, dtype=torch.float64).reshape(-1)  # (1,) or (B,), on the device they come from
    if not (factors.isfinite() & (factors > 0)).all():
        raise UserError(f"the factor of an object's size must be positive, not {factor}")
    if border not in get_args(Border):
        raise UserError(f"border must be one of {', '.join(get_args(Border))}; not {border!r}")
    if (factors == 1).all():
        return images
    mirrored = border == "reflect"
    resized = _along_both(images, lambda side: _resampling(side, factors, mirrored))
    resized = resized.clamp(images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True))
    if mirrored or (factors >= 1).all():
        return resized
    height, width = (_coverage(side, factors).to(images) for side in images.shape[-2:])
    cover = (height[:, :, None] * width[:, None])[:, None]  # (1 or B, 1, H, W)
    return cover * resized + (1 - cover) * _background(images, border)


def _along_both(images: torch.Tensor, matrix) -> torch.Tensor:
    """Applies matrices from old to new pixels, (1 or B, n, n) for a side of n, along the height and the width."""
    height, width = (matrix(side).to(images)[:, None] for side in images.shape[-2:])  # (1 or B, 1, n, n)
    return height @ images @ width.mT


def _resampling(side: int, factors: torch.Tensor, mirrored: bool) -> torch.Tensor:
    """The weight of each old pixel in each new one, (F,) → (F, side, side), float64; each row's sum is 1.

    Beyond the edge, the filter stops and its weights are made to sum to 1 (as in Pillow), or it meets mirrored pixels.
    """
    factors = factors[:, None]  # (F, 1)
    pixels = torch.arange(side, dtype=torch.float64, device=factors.device)
    centers = (pixels + 0.5 - side / 2) / factors + side / 2  # (F, side), in old pixels
    widening = (1 / factors).clamp(min=1)
    most = float(widening.max())
    reach = math.ceil((side / 2) * most + 2 * most) if mirrored else 0  # pixels needed beyond each edge
    places = torch.arange(-reach, side + reach, device=factors.device)
    if not mirrored:
        centers = centers.clamp(0, side)  # new pixels outside the image are covered by the border
    weights = _cubic((places + 0.5 - centers[..., None]) / widening[..., None])  # (F, side, places)
    weights /= weights.sum(-1, keepdim=True)
    return weights.new_zeros(len(factors), side, side).index_add_(2, mirror(places, side), weights)


def _background(images: torch.Tensor, border: Border) -> torch.Tensor:
    if border == "mean":
        return images.mean((2, 3), keepdim=True)
    if border == "edge":
        sides = (images[..., 0, :], images[..., -1, :], images[..., 1:-1, 0], images[..., 1:-1, -1])
        return torch.cat(sides, -1).mean(-1)[..., None, None]
    return _along_both(images, _blurring)


def _blurring(side: int) -> torch.Tensor:
    """A Gaussian blur that meets mirrored pixels beyond the edge, (1, side, side), float64."""
    places = torch.arange(-side, 2 * side)  # a whole image beyond each edge, that is eight standard deviations
    distances = (places - torch.arange(side)[:, None]) / (BLUR * side)
    weights = torch.exp(-0.5 * distances.double() ** 2)
    weights /= weights.sum(1, keepdim=True)
    return torch.zeros(side, side, dtype=torch.float64).index_add_(1, mirror(places, side), weights)[None]


def mirror(places: torch.Tensor, side: int) -> torch.Tensor:
    """Places on the line of pixels … 1 0 | 0 1 … side-1 | side-1 … → the pixels there, 0 to side - 1."""
    places = places % (2 * side)
    return torch.minimum(places, 2 * side - 1 - places)


def _coverage(side: int, factors: torch.Tensor) -> torch.Tensor:
    """The part of each new pixel that the resized image covers, (F,) → (F, side), float64."""
    start = torch.arange(side, dtype=torch.float64, device=factors.device)
    half = side * factors[:, None] / 2
    return ((start + 1).minimum(side / 2 + half) - start.maximum(side / 2 - half)).clamp(0, 1)


def _cubic(x: torch.Tensor) -> torch.Tensor:
    """Keys' cubic convolution kernel with a = -0.5, zero from 2 on."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
