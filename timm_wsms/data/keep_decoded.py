"""Small images are decoded once, before training."""

from dataclasses import replace

import numpy as np

from timm_wsms.data.decode import BadImageError, check_head, remedy
from timm_wsms.data.progress import progress
from timm_wsms.data.settings import DataSettings
from timm_wsms.data.split import Split, fits_in_memory
from timm_wsms.errors import UserError

MOST_CHECKED = 50_000  # images whose headers are read before training, which takes seconds


def keep_decoded(split: Split, settings: DataSettings) -> Split:
    """Decodes all images at once if they are small and of one size, so that no epoch has to.

    Otherwise they stay undecoded. A bad one would then stop the training in its first epoch, so files that are not
    images at all are looked for here if that takes seconds; a damaged image is found only when it is decoded.

    Args:
        split: with `rows`.
        settings: `on_bad_image` is used: "error", or "skip" to leave out the images that cannot be decoded and
            count them.

    Returns:
        A split with `pixels`, or the same split.

    Raises:
        UserError: if an image cannot be decoded and `on_bad_image` is "error", or if none can be.
    """
    pixels: np.ndarray | None = None
    bad: list[int] = []
    for row in progress(range(len(split)), f"Decoding {split.name}"):
        try:
            image = split.image(row)
        except BadImageError as error:
            if settings.on_bad_image == "error":
                raise UserError(f"{error} {remedy(settings)}") from error
            bad.append(row)
            continue
        if pixels is None and fits_in_memory(len(split), image.height, image.width):
            pixels = np.zeros((len(split), image.height, image.width, 3), np.uint8)
        if pixels is None or image.size != pixels.shape[2:0:-1]:
            return _check_heads(split, settings) if settings.on_bad_image == "error" else split
        pixels[row] = image
    if pixels is None:
        raise UserError(f"None of the {len(split)} images of split {split.name!r} can be decoded; fix the data.")
    labels = split.labels
    if bad:
        pixels, labels = np.delete(pixels, bad, axis=0), np.delete(labels, bad)
    kept = np.setdiff1d(np.arange(len(split)), bad)
    places = split.places if split.places is None else split.places[kept]
    return replace(split, labels=labels, pixels=pixels, rows=None, image_column="", skipped=len(bad), places=places)


def _check_heads(split: Split, settings: DataSettings) -> Split:
    if len(split) <= MOST_CHECKED:
        for row in progress(range(len(split)), f"Checking {split.name}"):
            try:
                check_head(split.undecoded(row), split.name, int(split.source_rows[row]))
            except BadImageError as error:
                raise UserError(f"{error} {remedy(settings)}") from error
    return split
