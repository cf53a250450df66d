"""The readers of data: images, parquet, Arrow and CSV files, tables beside images, names of files."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from benchmarks.common.environment import ROOT
from timm_wsms.data import DataSettings, load_split, load_splits
from timm_wsms.data.decode import decode, decode_cropped
from timm_wsms.data.jpeg_crop import JpegCrop
from timm_wsms.data.summary import describe, lines


@dataclass
class Reader:
    """A reader and what to change.

    Attributes:
        kind: Of `mutate.MUTATORS`.
        seeds: Valid files.
        file: Where the file lies in a checkpoint folder; "": elsewhere, of any name.
        read: Reads it; takes the checkpoint folder, which it may write to, and the file. A text that it returns has
            to be printable.
    """

    kind: str
    seeds: Callable[[], list[bytes]]
    file: str
    read: Callable[[Path, Path], Any]


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(executed) (w) file closefile
%%EOF
"""
METADATA = b"""{"file_name": "a.png", "label": "cat", "split": "train"}
{"file_name": "b.png", "label": "dog", "split": "train"}"""
NAMES = b'["train/cat/a.png", "train/dog/b.png", "train/dog/c.png", "test/cat/d.png", "test/dog/e.png", "notes.txt"]'
# The features that `datasets` writes into a parquet file, and rows; "png" stands for the bytes of an image.
TABLE = b"""{"features": {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}},
 "rows": [{"image": {"bytes": "png", "path": null}, "label": 0}, {"image": {"bytes": "png", "path": "b.png"},
 "label": 1}, {"image": {"bytes": null, "path": "c.png"}, "label": 0}]}"""
CARD = b"""configs:
- config_name: default
  data_files: [{split: test, path: test-00000.parquet}]
dataset_info:
  features: [{name: image, dtype: image}, {name: label, dtype: {class_label: {names: {"0": a, "1": b}}}}]
  splits: [{name: test, num_bytes: 4000, num_examples: 4}]
license: mit
"""


@functools.cache
def _images() -> list[bytes]:
    rng = np.random.default_rng(0)
    color, gray = rng.integers(0, 256, (24, 32, 3), np.uint8), rng.integers(0, 2**16, (24, 32), np.uint16)
    kinds = [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("WEBP", {}), ("BMP", {})]
    kinds += [("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}), ("ICO", {}), ("TGA", {})]
    kinds += [("AVIF", {}), ("JPEG2000", {}), ("DDS", {}), ("IM", {}), ("PCX", {}), ("SGI", {})]
    files = [_saved(Image.fromarray(color), form, **options) for form, options in kinds]
    exif = Image.Exif()
    exif[0x0112] = 6
    files += [_saved(Image.fromarray(color), "JPEG", exif=exif), _saved(Image.fromarray(color).convert("P"), "PNG")]
    files += [_saved(Image.fromarray(gray), form) for form in ("PNG", "TIFF")]
    return [*files, _saved(Image.fromarray(gray.astype(np.float32) / 2**16), "TIFF"), EPS]


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


CROP = JpegCrop(RandomResizedCropAndInterpolation(16, interpolation="bilinear"))


def _image(_: Path, file: Path) -> None:
    value = {"bytes": file.read_bytes(), "path": None}
    try:
        decode(value, "train", 0)
    finally:
        decode_cropped(value, "train", 0, CROP)


def _picture(_: Path, file: Path) -> None:
    if str(ROOT / "hub" / "space") not in sys.path:
        sys.path.insert(0, str(ROOT / "hub" / "space"))
    from demo.pictures import open_picture

    open_picture(file)


def _rows() -> datasets.Dataset:
    images = [{"bytes": file, "path": None} for file in _images()[:4]]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    return datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]}, features=features)


@functools.cache
def _parquet() -> list[bytes]:
    buffer = io.BytesIO()
    _rows().to_parquet(buffer)
    return [buffer.getvalue()]


@functools.cache
def _arrow() -> list[bytes]:
    table, buffer = _rows().data.table, io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    return [buffer.getvalue()]


def _folder(file: Path) -> Path:
    """An empty folder beside a file, for a source; `datasets` starts without a cache."""
    datasets.disable_progress_bars()
    for name in ("data", "cache"):
        shutil.rmtree(file.parent / name, ignore_errors=True)
    datasets.config.HF_DATASETS_CACHE = file.parent / "cache"
    (file.parent / "data").mkdir()
    return file.parent / "data"


def _read(folder: Path, **more: Any) -> str:
    split = load_split(DataSettings(source=str(folder), **more))
    for index in range(min(len(split), 4)):
        split.image(index)
    return "\n".join(lines(describe({"test": split}, DataSettings(source=str(folder)))))


def _parquet_split(_: Path, file: Path) -> str:
    folder = _folder(file)
    shutil.copyfile(file, folder / "test-00000.parquet")
    return _read(folder)


def _arrow_split(_: Path, file: Path) -> str:
    folder = _folder(file)
    shutil.copyfile(file, folder / "test-00000.arrow")
    return _read(folder)


def _table_split(_: Path, file: Path) -> str | None:
    """A parquet file that is whole, and says what the JSON says."""
    folder = _folder(file)
    try:
        told = json.loads(file.read_bytes())
        for row in told["rows"]:
            if isinstance(row["image"], dict) and row["image"].get("bytes") == "png":
                row["image"]["bytes"] = _images()[2]
        table = pa.Table.from_pylist(told["rows"])
        stated = json.dumps({"info": {"features": told["features"]}}).encode("utf-8", "surrogatepass")
        pa.parquet.write_table(table.replace_schema_metadata({b"huggingface": stated}), folder / "test-0.parquet")
    except Exception:  # no such file can be made
        return None
    return _read(folder, on_bad_image="skip")


def _data_card(_: Path, file: Path) -> str:
    """The README of a data set, which `datasets` reads."""
    folder = _folder(file)
    (folder / "test-00000.parquet").write_bytes(_parquet()[0])
    (folder / "README.md").write_bytes(b"---\n" + file.read_bytes() + b"\n---\n# Data\n")
    return _read(folder)


def _metadata(name: str) -> Callable[[Path, Path], str]:
    def read(_: Path, file: Path) -> str:
        folder = _folder(file)
        (folder / "test").mkdir()
        for image in ("a.png", "b.png"):
            (folder / "test" / image).write_bytes(_images()[2])
        shutil.copyfile(file, folder / "test" / name)
        return _read(folder)

    return read


def _names(_: Path, file: Path) -> str | None:
    """An image folder whose files have names of a stranger's."""
    folder = _folder(file)
    try:
        names = [str(name) for name in json.loads(file.read_bytes())]
    except (ValueError, RecursionError, TypeError):
        return None
    image = _images()[2]
    for name in dict.fromkeys(names):
        path = folder / name.lstrip("/")
        if ".." not in path.parts:
            with suppress(OSError, ValueError):  # no file can have this name
                os.makedirs(path.parent, exist_ok=True)
                path.write_bytes(image)
    settings = DataSettings(source=str(folder))
    train, test = load_splits(settings, 0)
    return "\n".join(lines(describe({"train": train, "test": test}, settings)))


DATA_READERS = {
    "image": Reader("bytes", _images, "", _image),
    "picture": Reader("bytes", _images, "", _picture),
    "parquet": Reader("bytes", _parquet, "", _parquet_split),
    "arrow": Reader("bytes", _arrow, "", _arrow_split),
    "table": Reader("json", lambda: [TABLE], "", _table_split),
    "data_card": Reader("yaml", lambda: [CARD], "", _data_card),
    "metadata_jsonl": Reader("json lines", lambda: [METADATA], "", _metadata("metadata.jsonl")),
    "metadata_csv": Reader(
        "bytes", lambda: [b"file_name,label\na.png,cat\nb.png,dog\n"], "", _metadata("metadata.csv")
    ),
    "names": Reader("json", lambda: [NAMES], "", _names),
}
