"""Random-resized crops of JPEG files, at the speed that feeding a GPU takes."""

from math import ceil

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from timm.data.transforms import RandomResizedCropAndInterpolation, interp_mode_to_str, str_to_interp_mode
from torchvision.transforms.functional import resized_crop

from timm_wsms.data.scale_jitter import ScaleJitterCrop, draw_interpolation

RESIZED = ("bilinear", "bicubic")  # PyTorch has these for 8-bit images, and with antialiasing, as Pillow does it


class JpegCrop:
    """timm's random-resized crop, or one with scale jitter, which also cuts from a JPEG that is not decoded yet.

    It draws what timm's draws, in the same order: the same crop of the same image. The file is decoded by libjpeg-turbo
    to an array, at full size as Pillow does. Where the crop is at least twice as large as what it is resized to, the
    image is decoded at the smallest scale of 1/2, 3/8, 1/4 and 1/8 that still covers it; the crop's edges are then
    rounded to whole pixels there, so that they are off by less than a pixel of the result. PyTorch does the resizing,
    about three times as fast as Pillow, and occasionally rounds differently.

    Args:
        crop: timm's, for which `can_replace` holds, or a `ScaleJitterCrop` of it.
    """

    def __init__(self, crop: RandomResizedCropAndInterpolation | ScaleJitterCrop):
        self.crop = crop

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.crop})"

    @staticmethod
    def can_replace(crop: object) -> bool:
        """Whether it is timm's random-resized crop, with an interpolation that PyTorch has for 8-bit images."""
        if not isinstance(crop, RandomResizedCropAndInterpolation):
            return False
        drawn = crop.interpolation if isinstance(crop.interpolation, tuple) else (crop.interpolation,)
        return all(interp_mode_to_str(mode) in RESIZED for mode in drawn)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Cuts from an image that is decoded, as timm does."""
        return self.crop(image)

    def from_file(self, file: bytes, image: Image.Image) -> np.ndarray:
        """Cuts from a JPEG file.

        Args:
            file: its bytes.
            image: the same, opened by Pillow but not decoded; `needs_only_decoding` holds for it.

        Returns:
            The crop in RGB, resized: uint8 (h, w, 3).

        Raises:
            Exception: whatever Pillow raises if it cannot decode the file.
        """
        crop = self.crop
        if isinstance(crop, ScaleJitterCrop):
            return self._jittered(file, image, crop)
        box = crop.get_params(image, crop.scale, crop.ratio)
        interpolation = draw_interpolation(crop)
        try:
            pixels = decode_crop(file, image.size, box, crop.size)
        except ValueError:  # something is wrong with the file, though Pillow may cope
            return np.array(resized_crop(image.convert("RGB"), *box, crop.size, str_to_interp_mode(interpolation)))
        return resize(pixels, crop.size, interpolation)

    def _jittered(self, file: bytes, image: Image.Image, crop: ScaleJitterCrop) -> np.ndarray:
        view, interpolation = crop.draw(image), draw_interpolation(crop.crop)
        (top, bottom), (left, right) = (view.source(axis) for axis in (0, 1))
        try:
            pixels = decode_covering(file, image.size, (bottom - top, right - left), crop.size)
        except ValueError:
            return crop.render(np.asarray(image.convert("RGB")), view, interpolation, resize)
        return crop.render(pixels, view, interpolation, resize)


def needs_only_decoding(image: Image.Image) -> bool:
    """Whether an opened image is a JPEG in color or gray that stands upright."""
    upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    return image.format == "JPEG" and image.mode in ("RGB", "L") and upright


def decode_crop(
    file: bytes, size: tuple[int, int], box: tuple[int, int, int, int], least: tuple[int, int]
) -> np.ndarray:
    """Decodes a crop of a JPEG, at a smaller scale where that suffices.

    Args:
        file: the JPEG.
        size: width and height of its image.
        box: top, left, height and width of the crop.
        least: height and width in pixels that the crop must still have.

    Returns:
        uint8 (H, W, 3), contiguous.

    Raises:
        ValueError: if the file is damaged.
    """
    top, left, height, width = box
    decoded = decode_covering(file, size, (height, width), least)
    scale = round(8 * decoded.shape[0] / size[1]) / 8
    top, bottom, left, right = (round(edge * scale) for edge in (top, top + height, left, left + width))
    return np.ascontiguousarray(decoded[top:bottom, left:right])


def decode_covering(
    file: bytes, size: tuple[int, int], part: tuple[float, float], least: tuple[int, int]
) -> np.ndarray:
    """Decodes a whole JPEG, at a smaller scale where a part of it then still has the pixels it needs.

    Args:
        file: the JPEG.
        size: width and height of its image.
        part: height and width of the part, in the image's pixels.
        least: height and width in pixels that the part must still have.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: if the file is damaged.
    """
    return simplejpeg.decode_jpeg(
        file,
        min_height=ceil(least[0] * size[1] / part[0]),
        min_width=ceil(least[1] * size[0] / part[1]),
        min_factor=2,  # 7/8, 6/8 and 5/8 take longer than 8/8, for which processors have instructions
    )


def resize(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resizes as Pillow does, except for rounding.

    Args:
        pixels: uint8 (H, W, C), contiguous.
        size: height and width of the result.
        interpolation: "bilinear" or "bicubic".

    Returns:
        uint8 (h, w, C).
    """
    images = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # (1, C, H, W), channels last, which is fast
    return F.interpolate(images, size, mode=interpolation, antialias=True)[0].permute(1, 2, 0).numpy()
