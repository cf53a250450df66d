"""Decodes one image, or says which one cannot be decoded."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from timm_wsms.data.folder_walk import open_image
from timm_wsms.data.high_bit_depth import (
    UnknownRangeError,
    ValueRange,
    check_upper_bits,
    has_more_bits,
    keeps_upper_bits,
    to_eight_bits,
    values_of,
)
from timm_wsms.data.jpeg_crop import JpegCrop, needs_only_decoding
from timm_wsms.data.settings import DataSettings
from timm_wsms.foreign import printable

if TYPE_CHECKING:
    import datasets

ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "lz4", "zstd")  # that `datasets` reads images from


class BadImageError(Exception):
    """An image that cannot be decoded. The message is one line; it names the split, the row and, if any, the file."""


def remedy(settings: DataSettings) -> str:
    """What can be done about an image that cannot be decoded."""
    return f"Fix or remove it, or leave out all such images with {settings.option('on_bad_image')}=skip."


def undecoded(table: "datasets.Dataset", column: str) -> "datasets.Dataset":
    """The column of images alone, each as {"bytes": …, "path": …}."""
    import datasets

    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def decode(
    value: dict[str, Any],
    split: str,
    row: int,
    value_range: ValueRange | None = None,
) -> Image.Image:
    """Decodes one image.

    Args:
        value: {"bytes": …, "path": …}, from `undecoded`.
        split: name of the split, for the message.
        row: number of the row in the split, from 0, for the message.
        value_range: black and white of an image of more than 8 bits; None: as its file says.

    Returns:
        The image in RGB, turned upright if its EXIF says so.

    Raises:
        BadImageError: if it cannot be decoded, or it is not known which of its values are black and white.
    """
    with _naming(value, split, row):
        return _load(open_image(BytesIO(_file(value))), value_range)


def decode_cropped(
    value: dict[str, Any], split: str, row: int, crop: JpegCrop, value_range: ValueRange | None = None
) -> np.ndarray:
    """Decodes a crop of one image; of a JPEG, no more than the crop needs.

    Args:
        value: as for `decode`; so are the other arguments and the errors.
        split: name of the split.
        row: number of the row.
        crop: what to take of the image.
        value_range: black and white.

    Returns:
        uint8 (h, w, 3), of the crop's size.
    """
    with _naming(value, split, row):
        file = _file(value)
        opened = open_image(BytesIO(file))
        if needs_only_decoding(opened):
            return crop.from_file(file, opened)
        return np.array(crop(_load(opened, value_range)))


def _load(opened: Image.Image, value_range: ValueRange | None) -> Image.Image:
    """An opened image's pixels, upright, in 8 bits, in RGB."""
    upper_bits = keeps_upper_bits(opened)
    values = values_of(opened, value_range) if has_more_bits(opened) else None
    opened.load()
    if upper_bits:
        check_upper_bits(opened, value_range)
    image = ImageOps.exif_transpose(opened) if opened.getexif().get(ExifTags.Base.Orientation) is not None else opened
    return (to_eight_bits(image, values) if values else image).convert("RGB")


def _file(value: dict[str, Any]) -> bytes:
    """An image's file."""
    if value["bytes"] is not None:
        return value["bytes"]
    try:
        status = os.stat(value["path"])
    except (OSError, ValueError):
        return _fetched(value["path"])  # not on this machine, but perhaps `datasets` finds it
    _check_regular(status)
    with open(value["path"], "rb", buffering=0) as file:
        return file.read()


def _check_regular(status: os.stat_result) -> None:
    """Refuses pipes and devices, whose content may never end."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a file, but a folder, a device or a pipe")


def _fetched(path: str) -> bytes:
    """A file in an archive, or on the Hub. Rows may come from strangers, so no other address is fetched."""
    import datasets
    import pyarrow as pa

    *archives, place = path.split("::")
    hub = ("hf://", f"{datasets.config.HF_ENDPOINT}/datasets/")
    inside = all(part.partition("://")[0] in ARCHIVES for part in archives)
    if not inside or ("://" in place and not place.startswith(hub)):
        raise ValueError("its path leads to a place other than the Hub, from which nothing is fetched")
    feature = datasets.Image()
    stored = pa.array([{"bytes": None, "path": path}], feature.pa_type)
    return feature.embed_storage(stored)[0]["bytes"].as_py()


def open_head(value: Mapping[str, Any]) -> Image.Image:
    """Opens an image without decoding its pixels; raises whatever Pillow raises."""
    if value["bytes"] is not None:
        return open_image(BytesIO(value["bytes"]))
    _check_regular(os.stat(value["path"]))
    return open_image(value["path"])


def check_head(value: dict[str, Any], split: str, row: int) -> None:
    """Checks whether something is an image, without decoding its pixels; arguments and errors as for `decode`."""
    with _naming(value, split, row):
        open_head(value).close()


@contextmanager
def _naming(value: dict[str, Any] | None, split: str, row: int) -> Iterator[None]:
    """Turns any error into one that names the image."""
    try:
        yield
    except MemoryError:
        raise
    except UnknownRangeError as error:
        raise BadImageError(f"Row {row} of split {split!r}{_place(value)}: {error}.") from error
    except Exception as error:  # Pillow's readers may raise anything on a damaged file
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split()))
        raise BadImageError(f"Row {row} of split {split!r}{_place(value)} cannot be decoded ({reason}).") from error


def _place(value: dict[str, Any] | None) -> str:
    return f" ({printable(str(value['path']))})" if value and value["path"] else ""
