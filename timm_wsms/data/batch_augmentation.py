"""Augmentation of a whole batch at once, on the device of its images; timm's, of single images, is in transforms.py."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from timm_wsms.data.settings import DataSettings
from timm_wsms.errors import UserError
from timm_wsms.object_scaling import rescale_object

PADDING = 4  # pixels on each side, He et al. 2016, Section 4.2
Draws = dict[str, torch.Tensor]  # what was drawn for each of n images, (n, …) each


class BatchAugmentation:
    """What `augmentation: pad_crop_flip` and `scale_jitter` do to normalized images.

    With `augmentation: timm`, scale jitter is part of the crop of each image, see `ScaleJitterCrop`.

    Args:
        settings: these two and `scale_border` are used.

    Raises:
        UserError: if the sizes of `scale_jitter` cannot be used.
    """

    def __init__(self, settings: DataSettings):
        self._pad_crop_flip = settings.augmentation == "pad_crop_flip"
        jitter = check_scale_jitter(settings)
        self._scale_jitter = None if settings.augmentation == "timm" else jitter
        self._border = settings.scale_border

    def __bool__(self) -> bool:
        return self._pad_crop_flip or self._scale_jitter is not None

    def draw(self, n: int, rng: np.random.Generator) -> Draws:
        """Draws what is done to each of n images."""
        drawn = {}
        if self._pad_crop_flip:
            drawn["corners"], drawn["flips"] = map(torch.from_numpy, draw_pad_crop_flip(n, rng))
        if self._scale_jitter:
            drawn["sizes"] = torch.from_numpy(draw_sizes(n, self._scale_jitter, rng))
        return drawn

    def __call__(self, images: torch.Tensor, drawn: Draws) -> torch.Tensor:
        """Applies the augmentation: float (B, C, H, W) → float (B, C, H, W)."""
        if "sizes" in drawn:
            images = rescale_object(images, drawn["sizes"], self._border)
        return pad_crop_flip(images, drawn["corners"], drawn["flips"]) if "corners" in drawn else images


def check_scale_jitter(settings: DataSettings) -> tuple[float, float] | None:
    """The smallest and the largest size of `scale_jitter`.

    Raises:
        UserError: if they are not valid sizes.
    """
    if settings.scale_jitter is None:
        return None
    least, most = settings.scale_jitter
    if not 0 < least <= most < math.inf:
        raise UserError(
            f"data.scale_jitter [{least:g}, {most:g}] must be the smallest and the largest size, both positive, such as"
            " [0.5, 2]."
        )
    return least, most


def draw_sizes(n: int, sizes: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Sizes between the smallest and the largest, uniform in their logarithm, float64 (n,)."""
    low, high = np.log(sizes)
    return np.exp(rng.uniform(low, high, n))


def draw_pad_crop_flip(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws, for each of n images, where `pad_crop_flip` crops and whether it flips.

    Args:
        n: number of images.
        rng: where the random numbers come from.

    Returns:
        corners: int64 (n, 2), row and column of the crop's corner in the padded image, 0 to 8.
        flips: bool (n,), true half of the time.
    """
    return rng.integers(0, 2 * PADDING, size=(n, 2), endpoint=True), rng.random(n) < 0.5


def pad_crop_flip(images: torch.Tensor, corners: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """CIFAR's usual augmentation (He et al. 2016, Section 4.2): pad 4 pixels, crop at random, flip left to right.

    The padding is zero after normalization, that is the channel's mean, as in fb.resnet.torch and in the paper's order
    of steps; padding the image itself would put black there.

    Args:
        images: float (B, C, H, W), normalized.
        corners: int64 (B, 2), from `draw_pad_crop_flip`.
        flips: bool (B,), likewise.

    Returns:
        float (B, C, H, W).
    """
    height, width = images.shape[-2:]
    windows = F.pad(images, (PADDING,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 9, 9, H, W), a view
    crops = windows[torch.arange(len(images), device=images.device), :, corners[:, 0], corners[:, 1]]  # (B, C, H, W)
    return torch.where(flips.view(-1, 1, 1, 1), crops.flip(-1), crops)
