"""The files of a folder, links followed, and which of them are images that Pillow reads."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO

from PIL import Image

from timm_wsms.errors import UserError

# Pillow recognizes these formats but cannot decode them itself: for EPS it would run Ghostscript on the file.
NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
JUNK = {".git", ".ipynb_checkpoints", ".thumbnails", ".cache", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"}
DEEPEST = 100  # folders in folders
Id = tuple[int, int]  # device and inode


def walk(folder: Path, above: tuple[tuple[Id, Path], ...] = ()) -> Iterator[tuple[Path, Id]]:
    """Every file below a folder, with its device and inode; links are followed."""
    here = identity_of(folder)
    if len(above) > DEEPEST:
        raise UserError(f"{above[0][1]} holds folders more than {DEEPEST} levels deep; move the images up.")
    for identity, path in above:
        if identity == here:
            raise UserError(f"{folder} is a link that leads back to {path}, a folder above it; remove the link.")
    folders = []
    for entry in sorted(scan(folder), key=lambda entry: entry.name):
        if is_folder(entry):
            folders.append(Path(entry.path))
        elif entry.is_symlink():
            try:
                target = entry.stat()
                yield Path(entry.path), (target.st_dev, target.st_ino)
            except OSError:  # it leads nowhere
                yield Path(entry.path), (0, 0)
        else:
            yield Path(entry.path), (here[0], entry.inode())
    for inner in folders:
        yield from walk(inner, (*above, (here, folder)))


def identity_of(folder: Path) -> Id:
    """What identifies a folder, whatever path leads to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read ({error.strerror}); change its permissions.") from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one, that may hold images."""
    try:
        return entry.is_dir() and entry.name not in JUNK
    except OSError:  # a link to itself
        return False


@cache
def suffixes() -> frozenset[str]:
    """The endings of files that Pillow decodes here."""
    Image.init()
    formats = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in formats.items() if kind in Image.OPEN and kind not in NO_PIXELS)


@cache
def kinds() -> tuple[str, ...]:
    """The formats that Pillow decodes itself, JPEG first: Pillow tries one after the other."""
    Image.init()
    return tuple(sorted((kind for kind in Image.ID if kind not in NO_PIXELS), key=lambda kind: kind != "JPEG"))


def open_image(file: str | Path | IO[bytes]) -> Image.Image:
    """Pillow's `Image.open`, limited to the formats that Pillow decodes itself, whatever the file is called.

    Raises:
        ValueError: The image is too large.
        Exception: Whatever Pillow raises if it is not an image.
    """
    image = Image.open(file, formats=kinds())
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:  # Pillow itself refuses twice as many
        raise ValueError(
            f"it has {image.width} × {image.height} pixels, and more than {most:,} (PIL.Image.MAX_IMAGE_PIXELS) may be "
            "meant to fill the memory; make it smaller"
        )
    return image


def why_no_image(path: Path) -> str | None:
    """Why a file is passed over; None if it is an image, judged by its name, or else by its content."""
    if path.is_symlink() and not path.exists():
        return "links that lead nowhere"
    if path.name in JUNK:
        return "folders that belong to programs"
    if path.suffix.lower() in suffixes() and not path.name.startswith("."):
        return None
    if not path.is_file():
        return "devices, pipes and the like"
    try:
        with Image.open(path) as image:
            return f"{image.format} files, which Pillow does not decode" if image.format in NO_PIXELS else None
    except Exception:  # Pillow's readers may raise anything
        return f"files that Pillow does not read ({path.suffix.lower() or 'no suffix'})"
