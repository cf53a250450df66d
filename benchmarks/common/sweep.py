"""What the experiments about object size have in common: networks trained alike, accuracy of each at every size.

A finished run leaves a record in benchmarks/results/<experiment>/: at each size, which test images were recognized. The
report is made from the records, so that runs of several sessions and machines can be compared image by image.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.common.environment import ROOT, record
from benchmarks.common.fourier_convolution import fourier_convolutions
from timm_wsms import object_size
from timm_wsms.evaluation.object_size.curve import Comparison, SizePredictions, compare
from timm_wsms.evaluation.options import ScaleOptions
from timm_wsms.evaluation.result_cache import data_fingerprint
from timm_wsms.files import atomic_write_text

PLAIN = "plain"  # the form that others are compared with
Groups = Mapping[str, tuple[str, ...]]  # name of a group → settings that all its runs have


@dataclass(frozen=True)
class Form:
    """A network to be trained, and how.

    Attributes:
        name: In the report.
        model: What `train_accelerate.py` calls it.
        words: Further settings of the run, as on its command line.
    """

    name: str
    model: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        group: Tells runs that are compared with each other from others: with or without jitter.
        words: Settings that all runs of the group have.
        source: The data, where they depend on the seed; None: that of the options.
        watched: The split that training evaluates, where the test images are kept for the end; None: the recipe's.
    """

    form: Form
    group: str
    words: tuple[str, ...]
    seed: int
    source: str | None = None
    watched: str | None = None

    @property
    def name(self) -> str:
        return f"{self.form.name}_{self.group}_seed{self.seed}".replace(" ", "_").replace(",", "")

    def folder(self, outputs: Path) -> Path:
        return outputs / self.name

    def model(self, outputs: Path) -> Path:
        return self.folder(outputs) / "model"

    def record(self, results: Path) -> Path:
        return results.with_suffix("") / f"{self.name}.json"

    def settings(self, options: argparse.Namespace) -> list[str]:
        """What the run is told beyond its recipe."""
        return [*self.form.words, *self.words, *(["--epochs", str(options.epochs)] if options.epochs else [])]


def parser(text: str | None, outputs: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """The options that all these experiments have."""
    options = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--source", help="a local folder with the data; without it, the recipe's Hub name")
    options.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    options.add_argument("--forms", nargs="+", help="only these networks")
    options.add_argument("--groups", nargs="+", help="only these ways of training")
    options.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options.add_argument("--threads", type=int, default=1, help="threads a run")
    options.add_argument("--eager", action="store_true", help="do not compile; faster for a small network on a GPU")
    options.add_argument("--fourier", action="store_true", help="on a CPU: fourier_convolution.py; eager")
    options.add_argument("--limit", type=int, default=10_000, help="test images")
    options.add_argument("--epochs", type=int, help="instead of the recipe's: another experiment, for a quick look")
    options.add_argument("--outputs", type=Path, default=ROOT / "outputs" / outputs)
    options.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / f"{outputs}.json")
    options.add_argument("--only_collect", action="store_true", help="train nothing, report what is finished")
    return options


def choose(forms: Sequence[Form], groups: Groups, options: argparse.Namespace) -> list[Run]:
    """The runs that the options name: all of one seed, then all of the next.

    Raises:
        SystemExit: There is no form or group of a name.
    """
    for there, named in (([form.name for form in forms], options.forms), (groups, options.groups)):
        if unknown := [name for name in named or [] if name not in there]:
            raise SystemExit(f"there is no {', '.join(map(repr, unknown))}; choose from {', '.join(map(repr, there))}")
    return [
        Run(form, group, words, seed)
        for seed in options.seeds
        for form in forms
        for group, words in groups.items()
        if form.name in (options.forms or form.name) and group in (options.groups or group)
    ]


def train_all(runs: Sequence[Run], sizes: Sequence[float], recipe: str, options: argparse.Namespace) -> None:
    """Trains and evaluates what has no record yet, in the order given; what was interrupted goes on.

    Raises:
        SystemExit: A record is of other settings; or, several at a time, runs have failed. The others are finished.
    """
    for run in runs:
        path = run.record(options.results)
        if path.exists() and json.loads(path.read_text(encoding="utf-8"))["settings"] != run.settings(options):
            raise SystemExit(f"{path} is of other settings; remove it, or name another file with --results")
    todo = [run for run in runs if not (options.only_collect or run.record(options.results).exists())]
    arguments = {"sizes": sizes, "recipe": recipe, "options": options}
    if options.jobs == 1:
        for run in todo:
            _train_and_measure(run, **arguments)
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [*pool.map(lambda run: _fails_alone(_train_and_measure, run, arguments), todo)]
    if any(failed):
        names = ", ".join(run.name for run, fails in zip(todo, failed, strict=True) if fails)
        raise SystemExit(f"failed, as told above and in {options.outputs}/*.log: {names}")


def _fails_alone(work: Callable[..., None], run: Run, arguments: Mapping[str, Any]) -> bool:
    """Does a run's work in a process of its own, so that one that is killed stops no other; tells whether it failed."""
    process = get_context("spawn").Process(target=_in_threads, args=(work, run, arguments))
    process.start()
    process.join()
    return process.exitcode != 0


def _in_threads(work: Callable[..., None], run: Run, arguments: Mapping[str, Any]) -> None:
    torch.set_num_threads(arguments["options"].threads)
    work(run, **arguments)


def _train_and_measure(run: Run, sizes: Sequence[float], recipe: str, options: argparse.Namespace) -> None:
    _train(run, recipe, options)
    measure(run, sizes, options)


def _train(run: Run, recipe: str, options: argparse.Namespace) -> None:
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


def measure(run: Run, sizes: Sequence[float], options: argparse.Namespace) -> None:
    """Evaluates a trained network at all sizes and writes its record."""
    model = run.model(options.outputs)
    source = run.source or options.source or "uoft-cs/cifar10"
    chosen = ScaleOptions(data=source, limit=options.limit, factors=[*sizes])
    with fourier_convolutions() if options.fourier else nullcontext():
        results, _, split = object_size.measure_all([str(model)], chosen)
    [result] = results.values()
    epochs = [json.loads(line) for line in (model / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained_with = yaml.safe_load((model / "settings.yaml").read_text(encoding="utf-8"))
    trained_on = json.loads((model / "results.json").read_text(encoding="utf-8"))["hardware"]
    found = {
        **{"form": run.form.name, "group": run.group, "seed": run.seed, "model": run.form.model},
        "settings": run.settings(options),
        **{"parameters": result.parameters, "weights_sha256": result.weights},
        **{"trained_on": trained_on, "compiled": trained_with["compile"], "fourier": options.fourier},
        **{"epochs": len(epochs), "train_loss": epochs[-1]["train_loss"]},
        "train_minutes": round(sum(epoch["seconds"] for epoch in epochs) / 60, 1),
        **{"test_images": len(result.found.index), "test_set_sha256": data_fingerprint(split)},
        **{"sizes": result.curve.factors, "at_one": result.curve.at_one, "top1": result.curve.top1},
        **{"area": result.curve.area, "area_interval": result.curve.area_interval},
        **record(),
        # for each size a bit for each test image, in their order: np.packbits, base64
        "recognized": [base64.b64encode(np.packbits(row).tobytes()).decode() for row in result.found.correct],
    }
    run.record(options.results).parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(run.record(options.results), json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def collect(forms: Sequence[Form], groups: Groups, what: str, options: argparse.Namespace) -> dict[str, Any]:
    """Writes the results file from all records that there are, and prints a line for each form.

    Runs of one group and one seed are compared on the same images: McNemar's test at every size, and the difference of
    the areas under the curves with its bootstrap interval.

    Raises:
        SystemExit: No run is finished.
    """
    folder = options.results.with_suffix("")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise SystemExit(f"no run is finished: there are no records in {folder}")
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
    atomic_write_text(options.results, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
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


def spread(values: Iterable[float]) -> dict[str, float | None] | None:
    """Mean and standard deviation (None for one value); None of nothing."""
    several = [*values]
    if not several:
        return None
    deviation = statistics.stdev(several) if len(several) > 1 else None
    return {"mean": round(statistics.mean(several), 3), "std": None if deviation is None else round(deviation, 3)}


def describe(row: dict[str, Any]) -> str:
    """One line for the screen."""
    head = f"{row['form']:16} {row['group']:12}"
    if not row["n"]:
        return f"{head} not run"
    at_one, area = (f"{row[key]['mean']:.2f} ± {row[key]['std'] or 0:.2f}" for key in ("at_one", "area"))
    differences = [one["against_plain"]["area_difference"] for one in row["seeds"] if one["against_plain"]]
    against = ", ".join(f"{difference:+.2f}" for difference in differences)
    return f"{head} n {row['n']}  at size 1 {at_one} %  area {area} %  against plain {against or '–'}"
