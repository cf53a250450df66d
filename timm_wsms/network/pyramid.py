"""The image pyramid: the image at several factors of its size, one per stage."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from timm_wsms.errors import UserError
from timm_wsms.network.fx import opaque

MOST = 16  # stages
LARGEST = 16  # factor


def choose_factors(pyramid: Sequence[float] | None, stages: int | None) -> list[float]:
    """The factors of all stages, stage 1's first, which is 1.

    Args:
        pyramid: The factors in any order; None: 1, 1/2, 1/4 …, as many as there are stages.
        stages: Number of stages; None: the pyramid's, or 3.

    Raises:
        UserError: If a factor is not positive, 1 is not there or there twice, or the two numbers differ.
    """
    if pyramid is None:
        stages = 3 if stages is None else stages
        if not 1 <= stages <= MOST:
            raise UserError(f"stages must be positive, not {stages}, and at most {MOST}")
        return halvings(stages)
    factors = [*pyramid]
    if not all(type(factor) in (int, float) and math.isfinite(factor) and factor > 0 for factor in factors):
        raise UserError(
            f"pyramid must be positive numbers, factors of the image's size, such as 2, 1, 0.5; not {factors}"
        )
    if factors.count(1) != 1:
        raise UserError(f"pyramid must hold 1 once, the image that stage 1 sees; not {factors}")
    if len(factors) > MOST or max(factors) > LARGEST:
        raise UserError(f"pyramid may hold {MOST} factors of at most {LARGEST}; not {str(factors)[:60]}")
    if stages not in (None, len(factors)):
        raise UserError(f"a pyramid of {len(factors)} factors makes as many stages, not {stages}; leave out stages")
    return [1.0, *(float(factor) for factor in factors if factor != 1)]


def halvings(stages: int) -> list[float]:
    """1, 1/2, 1/4 …"""
    return [0.5**number for number in range(stages)]


def make_pyramid(image: torch.Tensor, factors: Sequence[float]) -> list[torch.Tensor]:
    """The image at each of the factors.

    1, 1/2, 1/4 … by repeated 2×2 average pooling, which leaves out an odd last row or column; all others by antialiased
    bilinear interpolation. Sizes are rounded down to whole pixels.

    Args:
        image: (B, C, H, W).
        factors: Factors of its height and width.

    Returns:
        (B, C, about factor · H, about factor · W) each.

    Raises:
        UserError: If one of them would have no pixel.
    """
    check_size(image, min(factors), len(factors))
    halved, images = [image], []
    for factor in factors:
        times = -math.log2(factor)
        if times < 0 or times % 1:
            images.append(resize(image, factor))
            continue
        while len(halved) <= times:
            halved.append(F.avg_pool2d(halved[-1], 2))
        images.append(halved[int(times)])
    return images


@opaque  # it looks at sizes
def resize(image: torch.Tensor, factor: float) -> torch.Tensor:
    """(B, C, H, W) → (B, C, about factor · H, about factor · W)."""
    size = [max(1, int(side * factor)) for side in image.shape[-2:]]
    x = image.to(torch.promote_types(image.dtype, torch.float32))  # PyTorch's filter supports no others on a CPU
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=factor < 1)
    return x.to(image.dtype)


@opaque
def check_size(image: torch.Tensor, least: float, stages: int) -> None:
    """Raise a UserError if the smallest image of the pyramid, `least` times as large, would have no pixel."""
    height, width = image.shape[-2:]
    side = math.ceil(1 / least)
    if height < side or width < side:
        raise UserError(
            f"an image of {height}×{width} pixels is too small for {stages} stages: give at least {side}×{side}, or "
            "fewer stages"
        )
