"""From a name or a folder to images and labels."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from timm_wsms.data import columns
from timm_wsms.data.decode import BadImageError, check_head, decode, remedy, undecoded
from timm_wsms.data.digits import Digits, load_digits
from timm_wsms.data.hub_source import SPLITS, open_source, pick_split
from timm_wsms.data.jpeg_crop import JpegCrop
from timm_wsms.data.settings import DataSettings
from timm_wsms.data.stream import Stream, open_streams
from timm_wsms.errors import UserError

if TYPE_CHECKING:
    import datasets

T = TypeVar("T")
LARGEST_SIDE = 64  # pixels; larger images are decoded anew each time they are needed
MEMORY_LIMIT = 4 * 2**30  # bytes of decoded pixels that one split may keep
MOST_CHECKED = 50_000  # images whose heads are read before training, which takes seconds


@dataclass
class Split:
    """Images and labels of one split, in the source's order. An image's index is its place in here, 0 to n - 1.

    Attributes:
        name: the split's name in the source.
        labels: int64 (n,), classes counted from 0.
        class_names: one per class.
        pixels: uint8 (n, H, W, 3), if the images are kept decoded: all of one size, at most 64 pixels a side.
        rows: otherwise, the rows that they are decoded from one by one.
        image_column: the column of `rows`.
        object_sizes: int64 (n,), side in pixels of what each image shows; None where that is not known.
        skipped: number of rows already left out because they could not be decoded (never of those in `rows`).
    """

    name: str
    labels: np.ndarray
    class_names: list[str]
    pixels: np.ndarray | None = None
    rows: "datasets.Dataset | None" = None
    image_column: str = ""
    object_sizes: np.ndarray | None = None
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, limit: int | None) -> "Split":
        """The first so many images; all of them if None."""
        if limit is None or limit >= len(self):
            return self
        rows = None if self.rows is None else self.rows.select(range(limit))
        pixels = None if self.pixels is None else self.pixels[:limit]
        sizes = None if self.object_sizes is None else self.object_sizes[:limit]
        return replace(self, labels=self.labels[:limit], pixels=pixels, rows=rows, object_sizes=sizes)

    def image(self, index: int, *, crop: JpegCrop | None = None) -> Image.Image:
        """One image, in RGB, or a crop of it.

        Raises:
            BadImageError: if it cannot be decoded.
        """
        if self.pixels is not None:
            image = Image.fromarray(self.pixels[index])
            return crop(image) if crop else image
        assert self.rows is not None
        return decode(self.rows[index][self.image_column], self.name, index, crop)


def fits_in_memory(count: int, height: int, width: int) -> bool:
    """Whether so many images of so many pixels are kept decoded."""
    return max(height, width) <= LARGEST_SIDE and count * height * width * 3 <= MEMORY_LIMIT


def progress(items: Iterable[T], what: str, **more: Any) -> Iterable[T]:
    """Shows a progress bar on stderr if it takes more than a second; in the first process only.

    A log file gets a line now and then, not one for each redraw.

    Args:
        items: what is gone through.
        what: stands before the bar.
        more: anything else for tqdm.
    """
    first, terminal = os.environ.get("RANK", "0") == "0", sys.stderr.isatty()
    seconds = 0.3 if terminal else 20
    return tqdm(items, what, delay=1, mininterval=seconds, leave=terminal, disable=not first, **more)


def load_data(settings: DataSettings, seed: int) -> tuple[Split, Split] | tuple[Stream, Stream]:
    """What `load_splits` does; or, if `streaming` is set, opens streams (the embedded digits never are).

    Args:
        settings: of which those of `load_splits` and what is said of streams count.
        seed: as there.

    Raises:
        UserError: as there, or because it is not known how many images or classes a stream has.
    """
    if not settings.streaming or settings.source == "digits":
        return load_splits(settings, seed)
    _check_counts(settings)
    return open_streams(settings)


def load_splits(settings: DataSettings, seed: int) -> tuple[Split, Split]:
    """Loads the images and labels to train on and to evaluate on.

    Args:
        settings: of which `source`, `config`, the names of splits and columns, `on_bad_image` and the limits count.
        seed: of the embedded digits; other sources do not depend on it.

    Returns:
        (train, test), with the same class names.

    Raises:
        UserError: if the source, a split or a column is missing, or an image cannot be decoded.
    """
    _check_counts(settings)
    limits = settings.train_limit, settings.test_limit
    if settings.source == "digits":
        if seed < 0:
            raise UserError(f"seed is {seed}; give a number that is not negative.")
        digits = dict(zip(("train", "test"), load_digits(seed), strict=True))
        train, test = (_from_digits(pick_split(digits, settings, part), getattr(settings, part)) for part in SPLITS)
        return train.first(limits[0]), test.first(limits[1])
    found = open_source(settings)
    tables = [pick_split(found, settings, part) for part in SPLITS]
    image_column, label_column = columns.find_columns(tables[0], settings)
    labels, class_names = columns.read_labels(tables, settings, label_column)
    names = settings.train_split, settings.test_split
    train, test = (
        Split(name, of_split, class_names, rows=undecoded(table, image_column), image_column=image_column).first(limit)
        for name, of_split, table, limit in zip(names, labels, tables, limits, strict=True)
    )
    train = keep_decoded(train, settings)
    if (names[0], limits[0]) == (names[1], limits[1]):  # the same images, decoded once
        return train, train
    return train, keep_decoded(test, settings)


def _check_counts(settings: DataSettings) -> None:
    sizes = ("train_limit", "test_limit", "train_size", "test_size", "num_classes", "shuffle_buffer", "lanes")
    if settings.train_sizes is not None and min(settings.train_sizes, default=0) < 1:
        raise UserError(
            f"{settings.option('train_sizes')} is {settings.train_sizes}; give sides in pixels, such as [96, 128]."
        )
    for key, least in (*((key, 1) for key in sizes), ("workers", 0)):
        value = getattr(settings, key)
        if value is not None and value < least:
            raise UserError(f"{settings.option(key)} is {value}; give at least {least}.")


def _from_digits(digits: Digits, name: str) -> Split:
    class_names = [str(digit) for digit in range(10)]
    return Split(name, digits.labels, class_names, pixels=digits.pixels, object_sizes=digits.object_sizes)


def keep_decoded(split: Split, settings: DataSettings) -> Split:
    """Decodes all images at once if they are small and of one size, so that no epoch has to.

    Where they are not, they stay undecoded. A bad one would then stop the training in its first epoch, so what is no
    image at all is looked for here if that takes seconds; a damaged one still comes out only when it is decoded.

    Args:
        split: with `rows`.
        settings: of which `on_bad_image` counts: "error", or "skip" to leave out the images that cannot be decoded and
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
        raise UserError(f"None of the {len(split)} images of split {split.name!r} can be decoded; mend the data.")
    labels = split.labels
    if bad:
        pixels, labels = np.delete(pixels, bad, axis=0), np.delete(labels, bad)
    return Split(split.name, labels, split.class_names, pixels=pixels, skipped=len(bad))


def _check_heads(split: Split, settings: DataSettings) -> Split:
    if len(split) <= MOST_CHECKED:
        assert split.rows is not None
        for row in progress(range(len(split)), f"Checking {split.name}"):
            try:
                check_head(split.rows[row][split.image_column], split.name, row)
            except BadImageError as error:
                raise UserError(f"{error} {remedy(settings)}") from error
    return split
