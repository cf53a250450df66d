"""timm's random-resized crop of an image whose object is shown at another size, drawn per image (`data.scale_jitter`).

The image is not resampled twice: the crop is drawn on the canvas, and the part of the image that it shows is resized
straight to the network's input.
"""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data.transforms import RandomResizedCropAndInterpolation, interp_mode_to_str

from timm_wsms.object_scaling import BLUR, Border, mirror

TRIES = 10  # as many as timm's crop itself
THUMBNAIL = 32  # pixels per side; a background blurred over an eighth of the side holds no more detail
Resize = Callable[[np.ndarray, tuple[int, int], str], np.ndarray]  # uint8 (H, W, C), (h, w), mode → uint8 (h, w, C)


class View(NamedTuple):
    """A crop of an image whose object is shown `factor` times as large, on a canvas of the image's size.

    Attributes:
        factor: Size of the object divided by its size in the image.
        box: Top, left, height and width of the crop, in pixels of the canvas.
        size: Height and width of the canvas and of the image.
    """

    factor: float
    box: tuple[int, int, int, int]
    size: tuple[int, int]

    def source(self, axis: int) -> tuple[float, float]:
        """Where the crop begins and ends along the height (0) or the width (1), in the image's own pixels.

        For a smaller object that may be outside the image.
        """
        start, length, middle = self.box[axis], self.box[axis + 2], self.size[axis] / 2
        return (start - middle) / self.factor + middle, (start + length - middle) / self.factor + middle

    def visible_area(self) -> float:
        """Area of the part of the image that the crop shows, in the image's pixels."""
        ends = [self.source(axis) for axis in (0, 1)]
        return math.prod(max(0, min(b, side) - max(a, 0)) for (a, b), side in zip(ends, self.size, strict=True))


class ScaleJitterCrop:
    """timm's random-resized crop, taken from the image zoomed about its center, or shrunk on a canvas of its size.

    A crop of a shrunk image is drawn again until it shows as much of the image as timm's smallest crop does
    (`crop.scale[0]` of its area), or else it is the whole canvas: otherwise some crops would show only the border.

    Args:
        crop: timm's; draws the crop and the interpolation.
        sizes: The smallest and the largest size of the object, drawn uniformly in the logarithm; 1 is its own.
        border: What surrounds a smaller object, see `timm_wsms.object_scaling.rescale_object`.
    """

    def __init__(self, crop: RandomResizedCropAndInterpolation, sizes: tuple[float, float], border: Border):
        self.crop, self.sizes, self.border = crop, sizes, border
        self.size: tuple[int, int] = crop.size  # height and width of the result

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.crop}, sizes={self.sizes}, border={self.border!r})"

    def __call__(self, image: Image.Image) -> Image.Image:
        """Draws a crop of a decoded image and takes it with Pillow."""
        view, interpolation = self.draw(image), draw_interpolation(self.crop)
        return Image.fromarray(self.render(np.asarray(image), view, interpolation, resize_with_pillow))

    def draw(self, image: Image.Image) -> View:
        """Draws a size and a crop; of the image, it uses only the size."""
        factor = math.exp(random.uniform(*map(math.log, self.sizes)))
        size = image.size[::-1]
        for _ in range(TRIES):
            view = View(factor, self.crop.get_params(image, self.crop.scale, self.crop.ratio), size)
            if factor >= 1 or view.visible_area() >= self.crop.scale[0] * math.prod(size):
                return view
        return View(factor, (0, 0, *size), size)

    def render(self, pixels: np.ndarray, view: View, interpolation: str, resize: Resize) -> np.ndarray:
        """Shows a view of an image.

        Args:
            pixels: The whole image, uint8 (H, W, C), at its own size or decoded at a smaller scale.
            view: From `draw`.
            interpolation: Such as "bicubic".
            resize: Resizes pixels.

        Returns:
            uint8 (h, w, C), h and w of the crop's size.
        """
        sides = pixels.shape[:2]
        scales = [side / whole for side, whole in zip(sides, view.size, strict=True)]
        ends = [(a * scale, b * scale) for (a, b), scale in zip(map(view.source, (0, 1)), scales, strict=True)]
        if self.border == "reflect" and view.factor < 1:
            places = (torch.arange(math.floor(a), math.ceil(b)) for a, b in ends)
            seen = [mirror(of, side).numpy() for of, side in zip(places, sides, strict=True)]
            return resize(pixels[np.ix_(*seen)], self.size, interpolation)
        parts = [visible(a, b, side, out) for (a, b), side, out in zip(ends, sides, self.size, strict=True)]
        (rows, to_rows), (columns, to_columns) = parts
        place = to_rows.stop - to_rows.start, to_columns.stop - to_columns.start
        shown = resize(np.ascontiguousarray(pixels[rows, columns]), place, interpolation)
        if place == self.size:
            return shown
        result = self._background(pixels, view)
        result[to_rows, to_columns] = shown
        return result

    def _background(self, pixels: np.ndarray, view: View) -> np.ndarray:
        """What surrounds the object, uint8 (h, w, C)."""
        if self.border == "blur":
            small = Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
            small = small.filter(ImageFilter.GaussianBlur(BLUR * THUMBNAIL))
            top, left, height, width = view.box
            down, right = THUMBNAIL / view.size[0], THUMBNAIL / view.size[1]
            box = (left * right, top * down, (left + width) * right, (top + height) * down)
            return np.array(small.resize(self.size[::-1], Image.Resampling.BILINEAR, box))
        if self.border == "edge":
            sides = pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]
            color = np.concatenate(sides).mean(0)
        else:
            # exactly pixels.mean((0, 1)), which takes more than ten times as long
            color = pixels.sum(0, dtype=np.uint32).sum(0) / math.prod(pixels.shape[:2])
        return np.full((*self.size, pixels.shape[2]), color.round(), np.uint8)


def draw_interpolation(crop: RandomResizedCropAndInterpolation) -> str:
    """The interpolation of timm's crop, drawn if there are several to choose from."""
    several = isinstance(crop.interpolation, tuple)
    return interp_mode_to_str(random.choice(crop.interpolation) if several else crop.interpolation)


def visible(start: float, end: float, side: int, out: int) -> tuple[slice, slice]:
    """The pixels of an image's side that a crop from `start` to `end` shows, and where they go among its `out` pixels.

    Both are rounded to whole pixels, and hold at least one.
    """
    inside = max(start, 0), min(end, side)
    first = min(round(inside[0]), side - 1)
    place = [round((edge - start) / (end - start) * out) for edge in inside]
    to_first = min(place[0], out - 1)
    return slice(first, max(first + 1, round(inside[1]))), slice(to_first, max(to_first + 1, place[1]))


def resize_with_pillow(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """uint8 (H, W, C) → uint8 (h, w, C)."""
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling[interpolation.upper()]))
