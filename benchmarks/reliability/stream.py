"""What reading a stream costs beside map-style data, and what it costs to resume in mid-epoch: one run, in turn.

    python -m benchmarks.reliability.stream

JPEG images of ImageNet's mean size, 500×400 pixels and 95 KB, in parquet files on the local disk; the
random-resized crop at 224; nothing is trained. Three kinds of epochs alternate: of a stream, of the same files
map-style, and of a stream that is resumed at its last batch, so that all before it is read and dropped. What a
network between the files and the machine costs is not in here.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from benchmarks.common.environment import ROOT, record
from timm_wsms.data import DataSettings, Loader, TimmAugmentation, load_data, make_loader

CONFIG = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}
BATCH = 64


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        size = write(Path(folder) / "data", arguments.shards, arguments.images_per_shard)
        report = measure(Path(folder) / "data", arguments)
    report = {
        "what": "images/s of a stream and of map-style data; rows/s read and dropped on the way to where a run stopped",
        **record(),
        "datasets": datasets.__version__,
        "mean_bytes_per_image": size,
        "batch_size": BATCH,
        "workers": arguments.workers,
        **report,
    }
    Path(arguments.out).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        {name: report[name] for name in ("stream", "map_style", "dropped", "stream_to_map_style", "dropped_to_stream")}
    )


def write(folder: Path, shards: int, images_per_shard: int) -> int:
    """Writes the files, a row group of 100 images each as on the Hub; returns the mean size of an image in bytes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    total = 0
    for shard in range(shards):
        files = [jpeg(rng) for _ in range(images_per_shard)]
        total += sum(map(len, files))
        columns = {"image": [{"bytes": file, "path": None} for file in files], "label": [0] * len(files)}
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(folder / f"train-{shard:05d}-of-{shards:05d}.parquet", batch_size=100)
    return total // (shards * images_per_shard)


def jpeg(rng: np.random.Generator) -> bytes:
    """A picture with something at every scale, the weaker the finer."""
    picture = np.zeros((400, 500, 3), np.float32)
    for side, strength in ((4, 90), (16, 40), (64, 25), (200, 25)):
        coarse = rng.normal(0, strength, (side, side, 3)).astype(np.float32)
        planes = [Image.fromarray(coarse[..., c]).resize((500, 400), Image.Resampling.BICUBIC) for c in range(3)]
        picture += np.stack([np.asarray(plane) for plane in planes], axis=-1)
    file = io.BytesIO()
    Image.fromarray(np.clip(picture + 128, 0, 255).astype(np.uint8)).save(file, "jpeg", quality=92)
    return file.getvalue()


def measure(folder: Path, arguments: argparse.Namespace) -> dict:
    """Times the three kinds of epochs in alternating rounds, after a warm-up."""
    count = arguments.shards * arguments.images_per_shard
    mapped = DataSettings(str(folder), test_split="train", augmentation="timm", workers=arguments.workers)
    mapped.timm = TimmAugmentation(color_jitter=None)
    streamed = replace(mapped, streaming=True, train_size=count, test_size=count, shuffle_buffer=count // 4)
    loaders = {
        name: make_loader(load_data(settings, 0)[0], settings, CONFIG, batch_size=BATCH, train=True)
        for name, settings in (("stream", streamed), ("map_style", mapped))
    }
    last = len(loaders["stream"]) - 1
    kinds = {"stream": 0, "map_style": 0, "dropped": last}
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(arguments.rounds + 1):
        for name, start in kinds.items():
            seconds = epoch(loaders.get(name, loaders["stream"]), number, start)
            speeds[name].append((start or last + 1) * BATCH / seconds)
    found = {name: summary(values[1:]) for name, values in speeds.items()}
    medians = {name: found[name]["median"] for name in kinds}
    return {
        **found,
        "stream_to_map_style": round(medians["stream"] / medians["map_style"], 3),
        "dropped_to_stream": round(medians["dropped"] / medians["stream"], 2),
        "images_per_epoch": count,
        "rounds": arguments.rounds,
    }


def epoch(loader: Loader, number: int, start: int) -> float:
    """Seconds that the rest of an epoch takes."""
    loader.set_epoch(number, start)
    started = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - started


def summary(speeds: list[float]) -> dict:
    each = [float(f"{speed:.4g}") for speed in speeds]
    return {"median": statistics.median(each), "min": min(each), "max": max(each), "each": each}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--images_per_shard", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "stream.json"))
    return parser


if __name__ == "__main__":
    main()
