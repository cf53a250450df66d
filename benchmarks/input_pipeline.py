"""Images a second and core of the input pipeline, beside timm's loader, torchvision's decoder and what bounds it.

    python benchmarks/input_pipeline.py --source ../shared/data/cifar10

Two sets of JPEG files are made in a temporary folder (see input_images.py): ImageNet's sizes, and 1600 × 1200. All read
the same files for the same transform: random-resized crop to 224, flip, normalization, bicubic as timm's default of most
models. No worker processes; one thread. Rounds over a tenth of the files each; in a round all take turns, and each round
begins with another one. Time is that of the processor (`time.process_time`), which other programs on the machine change
less than the clock's; that is recorded beside it. A ratio is the median of the rounds' own ratios. Claims: with fast
decoding at least 1.5 times the images/s of timm's loader at 1600 × 1200, and never fewer than timm's.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import timm.data
import torch
import torchvision
from input_images import write_images
from machine import ROOT, record
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from timm_wsms.data import DataSettings, Split, TimmAugmentation, load_splits, make_loader, train_transform
from timm_wsms.data.jpeg import JpegCrop, decode_crop, resize
from timm_wsms.data.per_image import _seeded
from timm_wsms.data.transforms import split_off_crop

SIDE = 224
BATCH = 20
CONFIG = {
    "input_size": (3, SIDE, SIDE),
    "interpolation": "bicubic",
    "mean": timm.data.IMAGENET_DEFAULT_MEAN,
    "std": timm.data.IMAGENET_DEFAULT_STD,
    "crop_pct": 0.875,
    "crop_mode": "center",
}
LARGE = (1600, 1200)
TARGETS = {"imagenet": 1.0, "large": 1.5}  # of timm's loader's images/s
ROUNDS = 10

Candidates = dict[str, Callable[[], object]]


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)
    photographs = load_splits(DataSettings(arguments.source, train_limit=1000, test_limit=1), 0)[0].pixels
    report = {"what": __doc__.splitlines()[0], **record(), "targets": TARGETS, "rounds": arguments.rounds, "sets": {}}
    report["versions"] |= {"simplejpeg": simplejpeg.__version__, "pillow": Image.__version__}
    for name, count, size in (("imagenet", arguments.images, None), ("large", arguments.large, LARGE)):
        with tempfile.TemporaryDirectory() as folder:
            images = write_images(Path(folder) / "train", count, photographs, size)
            write_images(Path(folder) / "test", 2, photographs, size)
            report["sets"][name] = {"images": images, **measure(Path(folder), arguments.rounds)}
        print(describe(name, report["sets"][name]), flush=True)
    arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Measures all of them on one set of files.

    Returns:
        For each milliseconds an image, of the processor and by the clock (medians of the rounds); ratios of images/s to
        those of timm's loader with the same transform.
    """
    split = load_splits(DataSettings(str(folder), train_split="train"), 0)[0]
    jittered = {"": None, "_jitter": 0.4}  # color jitter, as in the paper's recipes
    times: dict[str, list[tuple[float, float]]] = {}
    step = len(split) // rounds
    for number in range(rounds):
        part = replace(
            split,
            labels=split.labels[number * step : (number + 1) * step],
            rows=split.rows.select(range(number * step, (number + 1) * step)),
        )
        paths = [part.rows[index]["image"]["path"] for index in range(step)]
        candidates = stages(part, paths)
        for suffix, jitter in jittered.items():
            candidates |= {name + suffix: run for name, run in loaders(part, folder, paths, jitter).items()}
        names = list(candidates)
        for name in names if number == 0 else ():
            candidates[name]()  # once to warm up
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times.setdefault(name, []).append(seconds(candidates[name], step))
    found = {
        name: {
            "cpu_ms": round(1000 * statistics.median(cpu for cpu, _ in each), 3),
            "wall_ms": round(1000 * statistics.median(wall for _, wall in each), 3),
            "images_per_second_and_core": round(1 / statistics.median(cpu for cpu, _ in each), 1),
        }
        for name, each in times.items()
    }
    return {"found": found, "ratios": ratios(times)}


def ratios(times: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Images/s to those of timm's loader with the same transform, by processor and by clock."""
    result = {}
    for name, each in times.items():
        baseline = times["timm_jitter" if name.endswith("_jitter") else "timm"]
        pairs = list(zip(baseline, each, strict=True))
        result[name] = {
            kind: round(statistics.median(timms[i] / ours[i] for timms, ours in pairs), 3)
            for i, kind in enumerate(("cpu", "wall"))
        }
    return result


def seconds(run: Callable[[], object], images: int) -> tuple[float, float]:
    """Seconds an image, of this process's processor time and by the clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return (time.process_time() - cpu) / images, (time.perf_counter() - wall) / images


def loaders(part: Split, folder: Path, paths: list[str], jitter: float | None) -> Candidates:
    """Whole pipelines, from files to normalized batches."""

    def ours(decoding: str) -> Callable[[], object]:
        settings = DataSettings(
            augmentation="timm", timm=TimmAugmentation(color_jitter=jitter), decoding=decoding, workers=0
        )
        loader = make_loader(part, settings, CONFIG, batch_size=BATCH, train=True)
        return lambda: [None for _ in loader]

    def timms(prefetcher: bool) -> Callable[[], object]:
        dataset = timm.data.ImageDataset(str(folder / "train"))
        dataset.reader.samples = [(path, 0) for path in paths]
        loader = timm.data.create_loader(
            *(dataset, CONFIG["input_size"], BATCH),
            is_training=True,
            use_prefetcher=prefetcher,
            color_jitter=jitter,
            interpolation=CONFIG["interpolation"],
            num_workers=0,
            pin_memory=False,
            persistent_workers=False,
            device=torch.device("cpu"),
        )
        return lambda: [None for _ in loader]

    candidates = {"fast": ours("fast"), "full": ours("full"), "timm": timms(False), "timm_prefetcher": timms(True)}
    if jitter is None:
        candidates["torchvision"] = lambda: torchvision_loader(paths)
    return candidates


def torchvision_loader(paths: list[str]) -> None:
    """torchvision's decoder and its transforms on tensors."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CONFIG["mean"], CONFIG["std"]),
        ]
    )
    for start in range(0, len(paths), BATCH):
        files = [torchvision.io.read_file(path) for path in paths[start : start + BATCH]]
        torch.stack([transform(torchvision.io.decode_jpeg(file, torchvision.io.ImageReadMode.RGB)) for file in files])


def stages(part: Split, paths: list[str]) -> Candidates:
    """What the fast pipeline spends its time on, and what others take for the same."""
    files = [Path(path).read_bytes() for path in paths]
    settings = DataSettings(augmentation="timm", timm=TimmAugmentation(color_jitter=None))
    crop, rest = split_off_crop(train_transform(CONFIG, settings))
    assert isinstance(crop, JpegCrop)
    sizes = [Image.open(io.BytesIO(file)).size for file in files]
    with _seeded(0):
        boxes = [crop.crop.get_params(Image.new("L", size), crop.crop.scale, crop.crop.ratio) for size in sizes]
    cuts = [decode_crop(*each, (SIDE, SIDE)) for each in zip(files, sizes, boxes, strict=True)]
    small = [resize(pixels, (SIDE, SIDE), "bicubic") for pixels in cuts]
    images = [Image.fromarray(pixels) for pixels in small]
    tensors = [rest(image) for image in images]

    def seed() -> None:
        for index in range(len(files)):
            with _seeded(0, 1, 2, index):
                pass

    return {
        "decode_pillow": lambda: [Image.open(io.BytesIO(file)).convert("RGB") for file in files],
        "decode_torchvision": lambda: [
            torchvision.io.decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8)) for file in files
        ],
        "decode_simplejpeg": lambda: [simplejpeg.decode_jpeg(file) for file in files],
        "stage_read": lambda: [Path(part.rows[index]["image"]["path"]).read_bytes() for index in range(len(files))],
        "stage_decode": lambda: [decode_crop(*each, (SIDE, SIDE)) for each in zip(files, sizes, boxes, strict=True)],
        "stage_resize": lambda: [Image.fromarray(resize(pixels, (SIDE, SIDE), "bicubic")) for pixels in cuts],
        "stage_rest": lambda: [rest(image) for image in images],
        "stage_seed": seed,
        "stage_collate": lambda: [torch.stack(tensors[i : i + BATCH]) for i in range(0, len(tensors), BATCH)],
    }


def describe(name: str, found: dict[str, Any]) -> str:
    """A table of one set."""
    images = found["images"]
    lines = [f"{name}: {images['count']} files, {images['width']:.0f} × {images['height']:.0f}, {images['kb']:.0f} KB"]
    for key, figures in found["found"].items():
        ratio = found["ratios"][key]
        lines.append(
            f"  {key:20} {figures['cpu_ms']:7.3f} ms {figures['images_per_second_and_core']:7.1f} images/s"
            f"  × {ratio['cpu']:.2f} of timm's (by the clock {ratio['wall']:.2f})"
        )
    missed = [key for key in ("fast", "fast_jitter") if found["ratios"][key]["cpu"] < TARGETS[name]]
    return "\n".join([*lines, f"  below the target of {TARGETS[name]}: {', '.join(missed) or 'none'}"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="uoft-cs/cifar10", help="CIFAR-10: its Hub name, or a local folder")
    parser.add_argument("--images", type=int, default=2000, help="files of ImageNet's sizes")
    parser.add_argument("--large", type=int, default=200, help="files of 1600 × 1200")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "input_pipeline.json")
    return parser


if __name__ == "__main__":
    main()
