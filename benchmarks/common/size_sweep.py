"""Sweeps about object size: networks trained alike by `train_accelerate.py`, and the accuracy of each at every size.

A run's record holds, for each size, which test images were recognized; so runs are compared image by image.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.common import sweep
from benchmarks.common.environment import ROOT, record
from benchmarks.common.fourier_convolution import fourier_convolutions
from benchmarks.common.sweep import PLAIN, Form, Groups, Record, Run, spread, write_json
from timm_wsms import object_size
from timm_wsms.evaluation.object_size.curve import Comparison, SizePredictions, compare
from timm_wsms.evaluation.options import ScaleOptions
from timm_wsms.evaluation.result_cache import data_fingerprint


def parser(text: str | None, name: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """The options of a sweep, and those of training by the script and of testing at sizes."""
    options = sweep.parser(text, name, seeds)
    options.add_argument("--eager", action="store_true", help="do not compile; faster for a small network on a GPU")
    options.add_argument("--fourier", action="store_true", help="on a CPU: fourier_convolution.py; eager")
    options.add_argument("--limit", type=int, default=10_000, help="test images")
    return options


def train_all(runs: Sequence[Run], sizes: Sequence[float], recipe: str, options: argparse.Namespace) -> None:
    """Trains and evaluates what has no record yet, as `sweep.run_all` does; what was interrupted goes on."""
    sweep.run_all(runs, partial(train_and_measure, sizes=sizes, recipe=recipe), options)


def train_and_measure(run: Run, options: argparse.Namespace, sizes: Sequence[float], recipe: str) -> Record:
    """Trains a network, unless it has been, and evaluates it at all sizes."""
    train(run, recipe, options)
    return measure(run, sizes, options)


def train(run: Run, recipe: str, options: argparse.Namespace) -> None:
    """Runs the script, in a process of its own with its share of the threads."""
    output = run.folder(options.outputs.resolve())
    if (output / "model").exists():
        return
    script = [*(["-m", "benchmarks.common.fourier_convolution"] if options.fourier else []), "train_accelerate.py"]
    command = [sys.executable, *script, "--recipe", recipe, "--model", run.form.model]
    command += [*run.settings(options), "--seed", str(run.seed), "--output", str(output), "--resume", "auto"]
    source = run.source or options.source
    command += ["--data.source", str(Path(source).resolve())] if source else []
    command += ["--data.test_split", run.watched] if run.watched else []
    command += ["--compile", "false"] if options.eager or options.fourier else []
    output.mkdir(parents=True, exist_ok=True)
    print(f"{output.name}: training", flush=True)
    with open(f"{output}.log", "w", encoding="utf-8") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    if not (output / "model").exists():
        raise SystemExit(f"{output.name} was stopped and has saved where it is; the same command goes on")


def measure(run: Run, sizes: Sequence[float], options: argparse.Namespace) -> Record:
    """Evaluates a trained network at all sizes: its record."""
    model = run.model(options.outputs)
    source = run.source or options.source or "uoft-cs/cifar10"
    chosen = ScaleOptions(data=source, limit=options.limit, factors=[*sizes])
    with fourier_convolutions() if options.fourier else nullcontext():
        results, _, split = object_size.measure_all([str(model)], chosen)
    [result] = results.values()
    epochs = [json.loads(line) for line in (model / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained_with = yaml.safe_load((model / "settings.yaml").read_text(encoding="utf-8"))
    trained_on = json.loads((model / "results.json").read_text(encoding="utf-8"))["hardware"]
    return {
        **{"parameters": result.parameters, "weights_sha256": result.weights},
        **{"trained_on": trained_on, "compiled": trained_with["compile"], "fourier": options.fourier},
        **{"epochs": len(epochs), "train_loss": epochs[-1]["train_loss"]},
        "train_minutes": round(sum(epoch["seconds"] for epoch in epochs) / 60, 1),
        **{"test_images": len(result.found.index), "test_set_sha256": data_fingerprint(split)},
        **{"sizes": result.curve.factors, "at_one": result.curve.at_one, "top1": result.curve.top1},
        **{"area": result.curve.area, "area_interval": result.curve.area_interval},
        # for each size a bit for each test image, in their order: np.packbits, base64
        "recognized": [base64.b64encode(np.packbits(row).tobytes()).decode() for row in result.found.correct],
    }


def collect(forms: Sequence[Form], groups: Groups, what: str, options: argparse.Namespace) -> dict[str, Any]:
    """Writes the results file from all records that there are, and prints a line for each form.

    Runs of one group and one seed are compared on the same images: McNemar's test at every size, and the difference of
    the areas under the curves with its bootstrap interval.

    Raises:
        SystemExit: No run is finished.
    """
    records = sweep.records_of(options)
    plain = {(one["group"], one["seed"]): one for one in records if one["form"] == PLAIN}
    for one in records:
        first = plain.get((one["group"], one["seed"]))
        one["against_plain"] = _of_pair(against(first, one)) if first and one is not first else None
    rows = [
        _row(form, group, [one for one in records if (one["form"], one["group"]) == (form.name, group)])
        for group in groups
        for form in forms
    ]
    words = {group: " ".join(words) for group, words in groups.items()}
    report = {"what": what, **record(), "recipe_words": words, "forms": rows}
    write_json(options.results, report)
    print("\n".join(map(describe, rows)))
    return report


def against(first: dict[str, Any], second: dict[str, Any]) -> Comparison:
    """Compares two records, image by image.

    Raises:
        SystemExit: They are not of the same test images.
    """
    check_same_images(first, second)
    return compare(*map(recognized, (first, second)))


def check_same_images(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Refuses two records that are not of the same test images.

    Raises:
        SystemExit: Naming both.
    """
    if first["test_set_sha256"] != second["test_set_sha256"]:
        names = [f"{one['form']}, {one['group']}, seed {one['seed']}" for one in (first, second)]
        raise SystemExit(f"{' and '.join(names)} were not tested on the same images; remove the record of one")


def recognized(record: dict[str, Any]) -> SizePredictions:
    """What a record tells of the predictions: whether they are right. Every label is 1, a right prediction too."""
    n = record["test_images"]
    packed = [np.frombuffer(base64.b64decode(row), np.uint8) for row in record["recognized"]]
    right = np.array([np.unpackbits(row, count=n) for row in packed], dtype=np.int64)
    return SizePredictions(tuple(record["sizes"]), np.arange(n), np.ones(n, np.int64), right)


def _row(form: Form, group: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of one form, and each seed's figures."""
    of_training = ("seed", "weights_sha256", "trained_on", "train_minutes")
    told = (*of_training, "at_one", "area", "area_interval", "top1", "against_plain")
    return {
        "form": form.name,
        "group": group,
        "model": form.model,
        "settings": " ".join(form.words),
        "n": len(records),  # 0: not run
        **{key: records[0][key] if records else None for key in ("parameters", "test_images", "sizes")},
        "at_one": spread(one["at_one"] for one in records),
        "area": spread(one["area"] for one in records),
        "top1": [spread(at_size) for at_size in zip(*(one["top1"] for one in records), strict=True)],
        "seeds": [{key: one[key] for key in told} for one in records],
    }


def _of_pair(pair: Comparison) -> dict[str, Any]:
    told = {"only_plain": pair.only_first, "only_this": pair.only_second, "p": pair.p}
    return {**told, "area_difference": pair.area_difference, "area_interval": pair.area_interval}


def describe(row: dict[str, Any]) -> str:
    """One line for the screen."""
    head = f"{row['form']:16} {row['group']:12}"
    if not row["n"]:
        return f"{head} not run"
    at_one, area = (f"{row[key]['mean']:.2f} ± {row[key]['std'] or 0:.2f}" for key in ("at_one", "area"))
    differences = [one["against_plain"]["area_difference"] for one in row["seeds"] if one["against_plain"]]
    against = ", ".join(f"{difference:+.2f}" for difference in differences)
    return f"{head} n {row['n']}  at size 1 {at_one} %  area {area} %  against plain {against or '–'}"
