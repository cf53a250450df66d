"""Wall-clock time of the small image first, beside the plain network's: eager, compiled, in onnxruntime.

    export OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000   # memory is kept between calls
    taskset -c 0 python -m benchmarks.speed.cascade
    taskset -c 0 python -m benchmarks.speed.cascade --data imagenette

The networks are the pair in hub/models, trained on flowers: the plain one at 128 pixels, and the averaging one at 112.
Or a pair that benchmarks/photographs.py has trained on Imagenette, both at 128 pixels. Thresholds are those that the
run's validation images chose (benchmarks/photographs_cascade.py). The networks take turns on test images, which are
decoded before (`python -m benchmarks.photographs_data` prepares them), in batches of 64 and one by one. Every round
begins with another form, and a ratio is the median of the rounds' own, of times in the same runtime. Beside it stands
the ratio of multiplications. Writes benchmarks/results/cascade_speed.json or cascade_speed_imagenette.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

import timm_wsms
from benchmarks.common.environment import ROOT, record
from benchmarks.photographs import SIZES, Run
from benchmarks.photographs_cascade import AT, CALIBRATED, DROPS, choose, exits_of
from benchmarks.photographs_cost import relative
from benchmarks.photographs_records import read_records
from timm_wsms.data import DataSettings, data_config, load_split, make_loader
from timm_wsms.files import atomic_write_text
from timm_wsms.network.exits import NEVER, choose_thresholds

RUNS = {  # what the averaging network is, with its validation images
    "flowers": Run("mean", "jitter", "1e-3", 2, False),
    "imagenette": Run("mean at 128", "jitter", "4e-3", 0, False, "imagenette"),
}
KEPT = ROOT / "hub" / "models"
FOLDERS = {  # of the plain network and the averaging one
    "flowers": (KEPT / "tf_efficientnet_lite0_flowers", KEPT / "wsmean_tf_efficientnet_lite0_flowers"),
    "imagenette": (
        Run("plain", "jitter", "4e-3", 0, False, "imagenette").folder / "model",
        RUNS["imagenette"].folder / "model",
    ),
}
IMAGES = {64: 256, 1: 64}  # size of a batch → test images
ALL = "all stages"
MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
OUT = {
    data: ROOT / "benchmarks" / "results" / f"cascade_speed{suffix}.json"
    for data, suffix in {"flowers": "", "imagenette": "_imagenette"}.items()
}

Form = Callable[[Tensor], Any]
Levels = Mapping[str, tuple[list[float], list[float]]]  # name → thresholds and temperatures of all exits but the last


def levels_of(run: Run) -> dict[str, tuple[list[float], list[float]]]:
    """Thresholds as `calibrate` and each allowed fall at size 1 choose them on the run's validation images."""
    found, arrays = read_records()[run.trained]
    exits, costs = exits_of(found, torch.from_numpy(arrays["validation_logits"]).double())
    labels = torch.from_numpy(arrays["validation_labels"])
    levels = {ALL: ([NEVER] * (len(exits) - 1), [1.0] * (len(exits) - 1))}
    for allowed in DROPS:
        heats, level = choose(exits, labels, costs, AT["size 1"], allowed)
        levels[f"cascade, {allowed:g} point{'s' * (allowed != 1)} allowed"] = [level] * len(heats), heats
    for name, drop in CALIBRATED.items():
        calibrated = choose_thresholds(exits[:, SIZES.index(1.0)], labels, drop)
        levels[f"cascade, `{name}`"] = calibrated.confidence, calibrated.temperatures
    return levels


def batches_of(run: Run, model: Any, number: int, size: int) -> list[Tensor]:
    """Test images as the model takes them, an even sample, channels last."""
    settings = DataSettings(str(run.source), test_split="test", crop_pct=1.0)
    loader = make_loader(load_split(settings), settings, data_config(model, settings), batch_size=64, train=False)
    images = torch.cat([batch.images for batch in loader])
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:number]]
    return [part.contiguous(memory_format=torch.channels_last) for part in images.split(size)]


def at(cascade: timm_wsms.Cascade, level: tuple[list[float], list[float]]) -> Form:
    """The cascade with these thresholds and temperatures; all forms of it share its stages, and so their graphs."""

    def forward(images: Tensor) -> Tensor:
        cascade.confidence, cascade.temperatures = level
        return cascade(images)

    return forward


def eager(plain: Any, mean: Any, levels: Levels, sides: Mapping[str, int]) -> dict[str, Form]:
    cascade = timm_wsms.Cascade(mean)
    return {"plain": plain, **{name: at(cascade, level) for name, level in levels.items()}}


def compiled(plain: Any, mean: Any, levels: Levels, sides: Mapping[str, int]) -> dict[str, Form]:
    """The plain network is one graph, and each stage is one."""
    torch.compiler.reset()
    plain, cascade = copy.deepcopy(plain), timm_wsms.Cascade(copy.deepcopy(mean))
    plain.compile()
    for stage in cascade.stages:
        stage.compile()
    return {"plain": plain, **{name: at(cascade, level) for name, level in levels.items()}}


def in_onnxruntime(plain: Any, mean: Any, levels: Levels, sides: Mapping[str, int]) -> dict[str, Form]:
    """The same graphs in onnxruntime, with one thread."""
    import onnxruntime

    from examples.cascade_onnx import OnnxCascade, export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        paths = export(timm_wsms.Cascade(mean).stages, (3, sides["mean"], sides["mean"]), Path(folder))
        made = {
            name: OnnxCascade(paths, *level, options)  # it has read the files when it is made
            for name, level in levels.items()
        }
        (path,) = export([plain], (3, sides["plain"], sides["plain"]), Path(folder))
        alone = OnnxCascade([path], [], [], options).sessions[0]
    (given,) = alone.get_inputs()
    forms: dict[str, Form] = {"plain": lambda images: alone.run(None, {given.name: images.numpy()})[0]}
    return forms | {name: lambda images, run=run: run(images.numpy()) for name, run in made.items()}


RUNTIMES = {"eager": eager, "compiled": compiled, "onnxruntime": in_onnxruntime}


def compare(forms: Mapping[str, tuple[Form, Sequence[Tensor]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each form for all of its batches, in every round but a first one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 1):
        order = [*forms][turn % len(forms) :] + [*forms][: turn % len(forms)]
        for name in order:
            forward, batches = forms[name]
            start = time.perf_counter()
            for batch in batches:
                forward(batch)
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


@torch.no_grad()
def measure(
    run: Run, runtime: str, networks: Mapping[str, Any], levels: Levels, size: int, images: int, rounds: int
) -> Any:
    """Times of all forms in one runtime, relative to the plain network's there, and whether logits are PyTorch's.

    Args:
        run: What the averaging network is.
        runtime: Of `RUNTIMES`.
        networks: "plain" and "mean", in eval mode.
        levels: Of the cascade.
        size: Of a batch.
        images: Number of test images.
        rounds: That count.
    """
    batches = {name: batches_of(run, network, images, size) for name, network in networks.items()}
    sides = {name: found[0].shape[-1] for name, found in batches.items()}
    made = RUNTIMES[runtime](networks["plain"], networks["mean"], levels, sides)
    taken = compare(
        {name: (form, batches["plain" if name == "plain" else "mean"]) for name, form in made.items()}, rounds
    )
    rows: dict[str, Any] = {}
    for name, seconds in taken.items():
        ratios = [one / base for one, base in zip(seconds, taken["plain"], strict=True)]
        rows[name] = {
            "time": round(statistics.median(ratios), 3),
            "each": [round(ratio, 3) for ratio in ratios],
            "ms_per_image": round(1000 * statistics.median(seconds) / images, 3),
        }
    expected, found = networks["mean"](batches["mean"][0]), torch.as_tensor(made[ALL](batches["mean"][0]))
    return {"largest_difference_of_logits": float((found - expected).abs().max()), "forms": rows}


@torch.no_grad()
def arithmetic(run: Run, mean: Any, levels: Levels, batches: Sequence[Tensor]) -> dict[str, float]:
    """Mean multiplications of the images in each form, relative to the plain network on its own image."""
    cascade, stage_1 = timm_wsms.Cascade(mean), relative(run.form, (1.0,), run.data)
    costs, spent = torch.tensor([0.0, *cascade.costs(batches[0].shape[1:])]), {"plain": 1.0}
    for name, level in levels.items():
        exits = []
        for batch in batches:
            at(cascade, level)(batch)
            exits.append(cascade.last_exits)
        spent[name] = round(costs[torch.cat(exits)].mean().item() * stage_1, 3)
    return spent


def lines(report: Mapping[str, Any]) -> list[str]:
    """The rows of docs/performance.md: for each size of a batch the arithmetic, and the time in each runtime."""
    rows = []
    for form in next(iter(report["batches"].values()))["arithmetic"]:
        cells = []
        for found in report["batches"].values():
            times = [found[runtime]["forms"][form] for runtime in RUNTIMES]
            cells.append(f"× {found['arithmetic'][form]:.2f}")
            cells += [f"× {row['time']:.2f}" for row in times]
        rows.append(f"| {form} | {' | '.join(cells)} |")
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=RUNS, default="flowers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    run, out = RUNS[options.data], options.out or OUT[options.data]
    networks: dict[str, Any] = {}
    for name, folder in zip(("plain", "mean"), FOLDERS[options.data], strict=True):
        networks[name] = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        networks[name].to(memory_format=torch.channels_last)
    levels = levels_of(run)
    report: dict[str, Any] = {"what": __doc__.splitlines()[0], "rounds": options.rounds, "images": IMAGES}
    report |= {"environment": {name: os.environ.get(name) for name in MALLOC}, "batches": {}}
    for size, images in IMAGES.items():
        batches = batches_of(run, networks["mean"], images, size)
        rows: dict[str, Any] = {"arithmetic": arithmetic(run, networks["mean"], levels, batches)}
        report["batches"][f"batches of {size}" if size > 1 else "one by one"] = rows
        for runtime in RUNTIMES:
            rows[runtime] = measure(run, runtime, networks, levels, size, images, options.rounds)
            print(size, runtime, json.dumps(rows[runtime], indent=1), flush=True)
            atomic_write_text(out, json.dumps({**report, **record()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
