"""Images of more than 8 bits per channel, scaled to 8 bits by the range of values that their files state.

Pillow keeps them in the modes `I;16`, `I` and `F`, and clips them when it converts them: a picture of floats from 0 to
1 comes out black. Of color images of 16 bits per channel it reads the upper 8 bits.
"""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

ValueRange = tuple[float, float]  # the values of black and white
# TIFF 6.0: BitsPerSample, PhotometricInterpretation, and pairs of the smallest and the largest value.
BITS, PHOTOMETRIC, RANGES = 258, 262, ((340, 341), (280, 281))
WHITE_IS_ZERO = 0
BLOCK = 2**20  # pixels that are scaled at a time
DARK = 1 / 16  # a 16-bit image whose brightest value is below this part of white more likely holds 12 bits or fewer


class UnknownRangeError(ValueError):
    """A file that does not say which values are black and white. The message names the setting that can say it."""


class Values(NamedTuple):
    """Which values are black and white.

    Attributes:
        black: may be the larger one.
        white: likewise.
        certain: the file or the user says so; otherwise it follows from the kind of numbers alone.
    """

    black: float
    white: float
    certain: bool


def has_more_bits(image: Image.Image) -> bool:
    """Whether Pillow keeps an image in more than 8 bits per channel."""
    return image.mode == "F" or image.mode.startswith("I")


def keeps_upper_bits(image: Image.Image) -> bool:
    """Whether Pillow will read 16 bits per channel as the upper 8; to be called before the pixels are loaded."""
    return not has_more_bits(image) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def values_of(image: Image.Image, given: ValueRange | None) -> Values:
    """The values of black and white, as the user or the file says.

    Args:
        image: with more than 8 bits, opened from a file.
        given: what the user says; it takes precedence.

    Raises:
        UnknownRangeError: neither does.
    """
    if given is not None:
        return Values(*given, certain=True)
    tags: Any = getattr(image, "tag_v2", {})
    stated = [(_number(tags.get(least)) or 0.0, _number(tags.get(most))) for least, most in RANGES]
    found = next(((black, white) for black, white in stated if white is not None and white > black), None)
    certain = found is not None
    if found is None and image.mode.startswith("I;16"):
        bits = tags.get(BITS, (16,))
        found = 0.0, 2.0 ** min(bits[0] if isinstance(bits, tuple) else bits, 16) - 1
        certain = found[1] < 2**16 - 1
    elif found is None and image.mode == "I" and image.format in ("PNG", "PPM"):  # Pillow brings these to 16 bits
        found = 0.0, 2.0**16 - 1
    elif found is None and image.mode == "F":
        found = 0.0, 1.0
    if found is None:
        raise UnknownRangeError(
            f"it holds {image.mode} numbers of 32 bits and does not say which are black and white; set"
            " value_range, such as [0, 255]"
        )
    inverted = image.format == "TIFF" and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    return Values(*(found[::-1] if inverted else found), certain)


def to_eight_bits(image: Image.Image, values: Values) -> Image.Image:
    """Scales an image's values, black to 0 and white to 255.

    Args:
        image: an image of mode `I;16…`, `I` or `F`.
        values: from `values_of`.

    Returns:
        The image in mode `L`.

    Raises:
        UnknownRangeError: its values do not fit them.
    """
    pixels = np.asarray(image)  # (H, W)
    least, most = float(pixels.min()), float(pixels.max())
    if not np.isfinite((least, most)).all():
        raise UnknownRangeError("it holds numbers that are not finite")
    if not values.certain:
        white = max(values.black, values.white)
        if not 0 <= least <= most <= white:
            raise UnknownRangeError(
                f"its values are from {least:g} to {most:g}, not from 0 to {white:g}; say which are black and white"
                " with value_range"
            )
        if image.mode != "F" and 0 < most < DARK * white:
            likely = 2 ** int(most).bit_length() - 1
            raise UnknownRangeError(
                f"its brightest value is {most:g} of {white:g}, which would be black; say which are black and white"
                f" with value_range, such as [0, {likely}], or [0, {white:g}] if it is that dark"
            )
    result = np.empty(pixels.shape, np.uint8)
    step = max(1, BLOCK // pixels.shape[1])
    for top in range(0, len(pixels), step):  # in float64, as which a large image would take over a GB
        scaled = (pixels[top : top + step].astype(np.float64) - values.black) / (values.white - values.black) * 255
        result[top : top + step] = scaled.round().clip(0, 255)
    return Image.fromarray(result)


def check_upper_bits(image: Image.Image, given: ValueRange | None) -> None:
    """Refuses a color image of which Pillow has read only the upper bits, if these do not show it.

    Args:
        image: for which `keeps_upper_bits` held; its pixels are loaded.
        given: what the user says about black and white.

    Raises:
        UnknownRangeError: its upper bits are nearly black, or the user gives another range.
    """
    bands = image.convert("RGB").getextrema()
    most = max(high for _, high in bands)  # type: ignore[misc]
    if (given is not None and tuple(given) != (0, 65535)) or (given is None and 0 < most < DARK * 256):
        raise UnknownRangeError(
            "it is a color image of 16 bits per channel that does not use them all; convert it to 8 bits"
        )


def _number(value: Any) -> float | None:
    """A tag's value, or the first of several."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    return None if value is None or isinstance(value, (str, bytes)) else float(value)
