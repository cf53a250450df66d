"""Decodes one image, or says which one cannot be decoded."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from timm_wsms.data.jpeg_crop import JpegCrop, needs_only_decoding
from timm_wsms.data.settings import DataSettings

if TYPE_CHECKING:
    import datasets


class BadImageError(Exception):
    """An image that cannot be decoded. The message is one line; it names the split, the row and, if any, the file."""


def remedy(settings: DataSettings) -> str:
    """What can be done about an image that cannot be decoded."""
    return f"Mend or remove it, or leave out all such images with {settings.option('on_bad_image')}=skip."


def undecoded(table: "datasets.Dataset", column: str) -> "datasets.Dataset":
    """The column of images alone, each as {"bytes": …, "path": …}."""
    import datasets

    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def decode(value: dict[str, Any], split: str, row: int, crop: JpegCrop | None = None) -> Image.Image:
    """Decodes one image.

    Args:
        value: {"bytes": …, "path": …}, from `undecoded`.
        split: name of the split, for the message.
        row: number of the row in the split, from 0, for the message.
        crop: take this of it; of a JPEG no more is then decoded than it needs.

    Returns:
        The image in RGB, turned upright if its EXIF says so; or the crop of it.

    Raises:
        BadImageError: if it cannot be decoded.
    """
    import datasets

    with _naming(value, split, row):
        if crop and (file := _file(value)) is not None:
            opened = Image.open(BytesIO(file))
            if needs_only_decoding(opened):
                return crop.from_file(file, opened)
        image = datasets.Image().decode_example(value)
        if image.mode.startswith("I"):  # 16 bits: Pillow would clip them to 8, and all but black came out white
            image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
        image = image.convert("RGB")
        return crop(image) if crop else image


def _file(value: dict[str, Any]) -> bytes | None:
    """An image's file; None if it is not on this machine, but where only `datasets` finds it."""
    if value["bytes"] is not None:
        return value["bytes"]
    try:
        return Path(value["path"]).read_bytes()
    except OSError:
        return None


def check_head(value: dict[str, Any], split: str, row: int) -> None:
    """Looks whether something is an image, without decoding its pixels; arguments and errors as for `decode`."""
    with _naming(value, split, row):
        Image.open(value["path"] if value["bytes"] is None else BytesIO(value["bytes"])).close()


@contextmanager
def _naming(value: dict[str, Any] | None, split: str, row: int) -> Iterator[None]:
    """Turns any error into one that names the image."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        place = f" ({value['path']})" if value and value["path"] else ""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadImageError(f"Row {row} of split {split!r}{place} cannot be decoded ({reason}).") from error
