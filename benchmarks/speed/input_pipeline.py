"""Images a second and core of the input pipeline, beside timm's loader, torchvision's decoder and what bounds it.

    python -m benchmarks.speed.input_pipeline --source ../shared/data/cifar10

Two sets of JPEG files are made in a temporary folder (see input_images.py): ImageNet's sizes, and 1600 × 1200. All read
the same files for the same transform: random-resized crop to 224 (bicubic), flip, normalization; `_jitter` with timm's
default color jitter before that, `_sizes` with objects of 0.5 to 2 times their size (`data.scale_jitter`). No worker
processes, one thread. Each round takes other files; in a round all take turns, and each round begins with another one.
Time is that of the processor (`time.process_time`), which other programs on the machine change less than the clock's;
that is recorded beside it. A ratio is the median of the rounds' own ratios. Targets: with fast decoding 1.6 times the
images/s of timm's loader, and 2.0 times at 1600 × 1200.

`timm` is timm's loader without its prefetcher, `timm_prefetcher` with it, so that batches are normalized, and
`timm_uint8` the same without normalization, which is what the processor has to do where a GPU normalizes. `stage_…` are
the parts of `fast`, `decode_…` and `resize_…` others for the same (input_steps.py); `bound` is `fast` without its
`stage_decode`. (`region_…` in the results is libjpeg-turbo called from C: benchmarks/jpeg_region.py at commit f19dc61.)
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import simplejpeg
import timm.data
import torch
import torchvision
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from benchmarks.common.environment import ROOT, record
from benchmarks.speed.input_images import write_images
from benchmarks.speed.input_steps import BATCH, SIDE, Candidates, Round
from timm_wsms.data import DataSettings, TimmAugmentation, load_splits, make_loader

CONFIG = {
    "input_size": (3, SIDE, SIDE),
    "interpolation": "bicubic",
    "mean": timm.data.IMAGENET_DEFAULT_MEAN,
    "std": timm.data.IMAGENET_DEFAULT_STD,
    "crop_pct": 0.875,
    "crop_mode": "center",
}
SETS = {"imagenet": {"amplitude": 32}, "large": {"amplitude": 12, "size": (1600, 1200)}}  # 110 and 700 KB
PARTS = ("stage_", "decode_", "resize_")
TARGETS = {"imagenet": 1.6, "large": 2.0}  # of timm's loader's images/s
ROUNDS = 10


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)
    photographs = load_splits(DataSettings(arguments.source, train_limit=1000, test_limit=1), 0)[0].pixels
    report = {"what": __doc__.splitlines()[0], **record(), "targets": TARGETS}
    report["versions"] |= {"simplejpeg": simplejpeg.__version__, "pillow": Image.__version__}
    out = arguments.out
    report["sets"] = json.loads(out.read_text(encoding="utf-8"))["sets"] if out.exists() else {}
    for name in arguments.sets:
        count = {"imagenet": arguments.images, "large": arguments.large}[name]
        with tempfile.TemporaryDirectory() as folder:
            images = write_images(Path(folder) / "train", count, photographs, **SETS[name])
            write_images(Path(folder) / "test", 2, photographs, **SETS[name])  # a source has two splits
            figures = measure(Path(folder), arguments.rounds)
        report["sets"][name] = {"date": report["date"], "rounds": arguments.rounds, "images": images, **figures}
        print(describe(name, report["sets"][name]), flush=True)
        out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Measures all of them on one set of files.

    Returns:
        For each milliseconds an image, of the processor and by the clock (medians of the rounds); for whole pipelines
        images/s in parts of those of timm's loader with the same transform. How much the crops of fast and full
        decoding differ.
    """
    split = load_splits(DataSettings(str(folder), train_split="train"), 0)[0]
    jittered = {"": None, "_jitter": 0.4}  # color jitter, as in the paper's recipes
    times: dict[str, list[tuple[float, float]]] = {}
    step = len(split) // rounds
    for number in range(rounds):
        rows = range(number * step, (number + 1) * step)
        one = Round(replace(split, labels=split.labels[rows.start : rows.stop], rows=split.rows.select(rows)), CONFIG)
        candidates = one.stages() | one.decoders() | one.resizers()
        for suffix, jitter in jittered.items():
            candidates |= {name + suffix: run for name, run in loaders(one, folder, jitter).items()}
        if number == 0:
            differences = one.differences()
        names = list(candidates)
        for name in names if number == 0 else ():
            candidates[name]()  # once to warm up
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times.setdefault(name, []).append(seconds(candidates[name], step))
    return {"found": summary(times), "fast_minus_full_pixels": differences}


def summary(times: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """The figures of each, from its rounds' seconds an image of the processor and by the clock."""
    found = {}
    for name, each in times.items():
        cpu, wall = (statistics.median(values) for values in zip(*each, strict=True))
        found[name] = {"cpu_ms": round(1000 * cpu, 3), "wall_ms": round(1000 * wall, 3)}
        found[name]["images_per_second_and_core"] = round(1 / cpu, 1)
        if not name.startswith(PARTS):
            timms = times["timm_jitter" if name.endswith("_jitter") else "timm"]
            for key, clock in (("of_timm_cpu", 0), ("of_timm_wall", 1)):
                quotients = [theirs[clock] / own[clock] for theirs, own in zip(timms, each, strict=True)]
                found[name][key] = round(statistics.median(quotients), 3)
    found["bound"] = {"cpu_ms": round(found["fast"]["cpu_ms"] - found["stage_decode"]["cpu_ms"], 3)}
    return found


def seconds(run: Callable[[], object], images: int) -> tuple[float, float]:
    """Seconds an image, of this process's processor time and by the clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return (time.process_time() - cpu) / images, (time.perf_counter() - wall) / images


def loaders(one: Round, folder: Path, jitter: float | None) -> Candidates:
    """Whole pipelines, from files to normalized batches."""

    def ours(decoding: str, sizes: tuple[float, float] | None = None) -> Iterable:
        settings = DataSettings(
            augmentation="timm",
            timm=TimmAugmentation(color_jitter=jitter),
            decoding=decoding,
            scale_jitter=sizes,
            workers=0,
        )
        return make_loader(one.part, settings, CONFIG, batch_size=BATCH, train=True)

    def timms(prefetcher: bool) -> Iterable:
        dataset = timm.data.ImageDataset(str(folder / "train"))
        dataset.reader.samples = [(path, 0) for path in one.paths]
        return timm.data.create_loader(
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

    prefetched = timms(True)
    iterables = {
        "fast": ours("fast"),
        "full": ours("full"),
        "timm": timms(False),
        "timm_prefetcher": prefetched,
        "timm_uint8": prefetched.loader,
    }
    if jitter is None:
        iterables |= {f"{decoding}_sizes": ours(decoding, (0.5, 2.0)) for decoding in ("fast", "full")}
    candidates = {name: lambda loader=loader: [None for _ in loader] for name, loader in iterables.items()}
    if jitter is None:
        candidates["torchvision"] = lambda: torchvision_loader(one.paths)
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


def describe(name: str, of_set: dict[str, Any]) -> str:
    """A table of one set."""
    images, found = of_set["images"], of_set["found"]
    lines = [f"{name}: {images['count']} files, {images['width']:.0f} × {images['height']:.0f}, {images['kb']:.0f} KB"]
    for key, figures in found.items():
        line = f"  {key:29} {figures['cpu_ms']:7.3f} ms {1000 / figures['cpu_ms']:8.1f} images/s"
        if "of_timm_cpu" in figures:
            line += f"  × {figures['of_timm_cpu']:.2f} of timm's (by the clock {figures['of_timm_wall']:.2f})"
        lines.append(line)
    missed = [key for key in ("fast", "fast_jitter") if found[key]["of_timm_cpu"] < TARGETS[name]]
    return "\n".join([*lines, f"  below the target of {TARGETS[name]}: {', '.join(missed) or 'none'}"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="uoft-cs/cifar10", help="CIFAR-10: its Hub name, or a local folder")
    parser.add_argument("--images", type=int, default=2000, help="files of ImageNet's sizes")
    parser.add_argument("--large", type=int, default=200, help="files of 1600 × 1200")
    parser.add_argument(
        "--sets", nargs="+", choices=list(SETS), default=list(SETS), help="the rest is kept as measured"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "input_pipeline.json")
    return parser


if __name__ == "__main__":
    main()
