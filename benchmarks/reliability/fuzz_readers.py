"""The readers of files from others, each as a function that takes a file's bytes, and valid files to start from."""

from __future__ import annotations

import functools
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from benchmarks.common.environment import ROOT
from timm_wsms.data import DataSettings, load_split
from timm_wsms.data.decode import decode, decode_cropped
from timm_wsms.data.jpeg_crop import JpegCrop
from timm_wsms.evaluation.object_size.trained_range import trained_sizes
from timm_wsms.hub import backbone_folder, card, published, verify_folder
from timm_wsms.network.cascade import Cascade
from timm_wsms.training import settings

card._picture = lambda *_: "a picture"  # type: ignore  # of the network in config.json, which "config" reads; takes 2 s
MODEL = ROOT / "hub" / "models" / "wsms_resnet20_sizes_cifar10"
DATA = b"""{"source": "x/y", "classes": ["a", "b"], "splits": {"test": {"name": "test", "images": 4,
 "images_per_class": {"a": 2, "b": 2}, "looked_at": 4, "modes": {"RGB": 4}, "width": [4, 8], "height": [4, 4],
 "passed_over": {"hidden files": {"files": 4, "first": ["x", "y"]}}}}, "only_in": {"test": ["b"]},
 "beside": {"no images": {"files": 1, "first": ["README"]}}, "remarks": ["a remark"]}"""
CASCADE = b'{"factors": [0.5, 1.0], "confidence": [0.9], "temperatures": [1.5]}'
PUBLISHED = b"""[{"name": "wsms_resnet18", "tag": "a", "repo": "x/y", "revision": "0", "sha256": "0", "accuracy": 1.0,
 "config": {"input_size": [3, 32, 32], "num_classes": 10, "mean": [0.5, 0.5, 0.5], "classifier": "backbone.fc"}}]"""


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


def prepare(place: Path) -> Path:
    """A checkpoint folder to spoil."""
    folder = Path(shutil.copytree(MODEL, place / "model"))
    (folder / "data.json").write_bytes(DATA)
    (folder / "cascade.json").write_bytes(CASCADE)
    return folder


def _config(folder: Path, _: Path) -> None:
    verify_folder.check_config(folder)
    verify_folder.load(folder)


def _card(folder: Path, _: Path) -> str:
    text = card.render(folder, "someone/else")
    trained_sizes(folder, 1.0)
    return text


def _results(folder: Path, _: Path) -> str:
    verify_folder.check_results(folder)
    backbone_folder.measured(folder, 1)
    return card.render(folder, "someone/else")


def _weights(folder: Path, _: Path) -> None:
    verify_folder.check_run(folder)
    verify_folder.load(folder)


def _tensors(folder: Path, _: Path) -> None:
    verify_folder.check_outputs(_kept(folder), folder)


def _cascade(folder: Path, _: Path) -> None:
    Cascade.from_folder(folder, _kept(folder))


_MODELS: list[Any] = []


def _kept(folder: Path) -> Any:
    """The folder's model, loaded once: of these readers' files it is none."""
    if not _MODELS:
        _MODELS.append(verify_folder.load(folder))
    return _MODELS[0]


@functools.cache
def _images() -> list[bytes]:
    rng = np.random.default_rng(0)
    color, gray = rng.integers(0, 256, (24, 32, 3), np.uint8), rng.integers(0, 2**16, (24, 32), np.uint16)
    kinds = [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("WEBP", {}), ("BMP", {})]
    kinds += [("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}), ("ICO", {}), ("TGA", {})]
    files = [_saved(Image.fromarray(color), form, **options) for form, options in kinds]
    exif = Image.Exif()
    exif[0x0112] = 6
    files += [_saved(Image.fromarray(color), "JPEG", exif=exif), _saved(Image.fromarray(color).convert("P"), "PNG")]
    files += [_saved(Image.fromarray(gray), form) for form in ("PNG", "TIFF")]
    return [*files, _saved(Image.fromarray(gray.astype(np.float32) / 2**16), "TIFF")]


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


@functools.cache
def _parquet() -> list[bytes]:
    images = [{"bytes": file, "path": None} for file in _images()[:4]]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    buffer = io.BytesIO()
    datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]}, features=features).to_parquet(buffer)
    return [buffer.getvalue()]


def _parquet_split(_: Path, file: Path) -> None:
    datasets.disable_progress_bars()
    folder = file.parent / "data"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(file, folder / "test-00000.parquet")
    shutil.rmtree(file.parent / "cache", ignore_errors=True)
    datasets.config.HF_DATASETS_CACHE = file.parent / "cache"
    split = load_split(DataSettings(source=str(folder)))
    for index in range(min(len(split), 4)):
        split.image(index)


def _recipe(_: Path, file: Path) -> None:
    settings.parse(["--recipe", str(file), "--model", "wsms_resnet18"])


def _recipes() -> list[bytes]:
    return [file.read_bytes() for file in sorted((ROOT / "recipes").glob("*.yaml"))]


def _published(_: Path, file: Path) -> None:
    for entry in published.published(file):
        entry.pretrained_cfg()


def _file(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(MODEL / name).read_bytes()]


READERS = {  # those of files from the Hub first
    "config": Reader("json", _file("config.json"), "config.json", _config),
    "weights": Reader("safetensors", _file("model.safetensors"), "model.safetensors", _weights),
    "tensors": Reader("safetensors", _file("test/tensors.safetensors"), "test/tensors.safetensors", _tensors),
    "settings": Reader("yaml", _file("settings.yaml"), "settings.yaml", _card),
    "metrics": Reader("json lines", _file("metrics.jsonl"), "metrics.jsonl", _results),
    "results": Reader("json", _file("results.json"), "results.json", _results),
    "data": Reader("json", lambda: [DATA], "data.json", _card),
    "cascade": Reader("json", lambda: [CASCADE], "cascade.json", _cascade),
    "image": Reader("bytes", _images, "", _image),
    "parquet": Reader("bytes", _parquet, "", _parquet_split),
    "recipe": Reader("yaml", _recipes, "", _recipe),
    "published": Reader("json", lambda: [PUBLISHED], "", _published),
}
