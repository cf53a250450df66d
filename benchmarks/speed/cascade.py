"""Wall-clock time of the small image first, beside the plain backbone's, on photographs that decide how many go on.

    export OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000   # memory is kept between calls
    taskset -c 0 python -m benchmarks.speed.cascade

Networks are those that benchmarks/photographs.py trained on a fold and kept: the plain one at 128 pixels, and the
averaging one at 112 with the thresholds that its validation images chose (benchmarks/photographs_cascade.py). They take
turns on the same test images, which are decoded before, in batches of 64 and one by one; every round begins with
another form, and a ratio is the median of the rounds' own. Beside it stands the ratio of multiplications.
Writes benchmarks/results/cascade_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch

import timm_wsms
from benchmarks.common.environment import ROOT, record
from benchmarks.photographs import Run
from benchmarks.photographs_cascade import AT, DROPS, choose, exits_of
from benchmarks.photographs_cost import PLAIN, SIDE, count
from benchmarks.photographs_records import read_records
from timm_wsms.data import DataSettings, data_config, load_split, make_loader
from timm_wsms.files import atomic_write_text

IMAGES = {64: 256, 1: 32}  # size of a batch → test images
NAMES = {"mean": "all stages"}  # form → in the document
MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
OUT = ROOT / "benchmarks" / "results" / "cascade_speed.json"


def cascades_of(run: Run, mean: Any) -> dict[str, timm_wsms.Cascade]:
    """A cascade for each allowed fall, with the threshold of the fold's validation images at size 1."""
    found, arrays = read_records()[run.trained]
    exits, costs = exits_of(found, torch.from_numpy(arrays["validation_logits"]).double())
    labels = torch.from_numpy(arrays["validation_labels"])
    made = {}
    for allowed in DROPS:
        heats, level = choose(exits, labels, costs, AT["size 1"], allowed)
        made[f"cascade, {allowed:g} point{'s' * (allowed != 1)} allowed"] = timm_wsms.Cascade(mean, level, heats)
    return made


def batches_of(run: Run, model: Any, number: int, size: int) -> list[torch.Tensor]:
    """Test images as the model takes them, an even sample, channels last."""
    settings = DataSettings(str(run.source), test_split="test", crop_pct=1.0)
    loader = make_loader(load_split(settings), settings, data_config(model, settings), batch_size=64, train=False)
    images = torch.cat([batch.images for batch in loader])
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:number]]
    return [part.contiguous(memory_format=torch.channels_last) for part in images.split(size)]


def compare(forms: Mapping[str, tuple[Any, Sequence[torch.Tensor]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each form for all of its batches, in every round but a first one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 1):
        order = [*forms][turn % len(forms) :] + [*forms][: turn % len(forms)]
        for name in order:
            model, batches = forms[name]
            start = time.perf_counter()
            for batch in batches:
                model(batch)
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


@torch.inference_mode()
def measure(fold: int, batch_size: int, images: int, rounds: int) -> dict[str, Any]:
    """All forms on one fold's test images."""
    runs = {"plain": Run("plain", "default", "2e-3", fold, True), "mean": Run("mean", "default", "1e-3", fold, True)}
    models = {}
    for name, run in runs.items():
        models[name] = timm.create_model(f"local-dir:{run.folder / 'model'}", pretrained=True).eval()
        models[name].to(memory_format=torch.channels_last)
    batches = {name: batches_of(run, models[name], images, batch_size) for name, run in runs.items()}
    cascades = cascades_of(runs["mean"], models["mean"])
    forms = {name: (model, batches[name]) for name, model in models.items()}
    forms |= {name: (model, batches["mean"]) for name, model in cascades.items()}
    times = compare(forms, rounds)
    plain, side = count(PLAIN, SIDE), batches["mean"][0].shape[-1]
    found: dict[str, Any] = {}
    for name, taken in times.items():
        ratios = [one / base for one, base in zip(taken, times["plain"], strict=True)]
        row = {"time": round(statistics.median(ratios), 3), "each": [round(ratio, 3) for ratio in ratios]}
        if name in cascades:
            cost = spent(cascades[name], batches["mean"])
            row["arithmetic"] = round(cost * count(PLAIN, side) / plain, 3)
        else:
            row["arithmetic"] = (
                1.0 if name == "plain" else round(sum(count(PLAIN, size) for size in (side, side // 2)) / plain, 3)
            )
        found[name] = row
    return found


def spent(cascade: timm_wsms.Cascade, batches: Sequence[torch.Tensor]) -> float:
    """Mean arithmetic of the images, relative to the backbone on an image of the same size."""
    costs = torch.tensor([0.0, *cascade.costs(batches[0].shape[1:])])
    exits = []
    for batch in batches:
        cascade(batch)
        exits.append(cascade.last_exits)
    return costs[torch.cat(exits)].mean().item()


def lines(report: Mapping[str, Any]) -> list[str]:
    """The rows of docs/performance.md: medians over the folds of the folds' medians, and the range of all rounds."""
    folds = list(report["folds"].values())
    rows = []
    for form in folds[0]["batches of 64"]:
        cells = []
        for batches in folds[0]:
            found = [fold[batches][form] for fold in folds]
            time, cost = (statistics.median(row[what] for row in found) for what in ("time", "arithmetic"))
            rounds = [ratio for row in found for ratio in row["each"]]
            spread = "" if form == "plain" else f" ({min(rounds):.2f} to {max(rounds):.2f})"
            cells += [f"× {cost:.2f}", f"× {time:.2f}{spread}"]
        rows.append(f"| {NAMES.get(form, form)} | {' | '.join(cells)} |")
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    report: dict[str, Any] = {"what": __doc__.splitlines()[0], "rounds": options.rounds}
    report |= {"images": IMAGES, "environment": {name: os.environ.get(name) for name in MALLOC}, "folds": {}}
    for fold in options.folds:
        report["folds"][fold] = {
            f"batches of {size}": measure(fold, size, images, options.rounds) for size, images in IMAGES.items()
        }
        print(fold, json.dumps(report["folds"][fold], indent=1))
        atomic_write_text(options.out, json.dumps({**report, **record()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
