"""What the experiments about object size have in common: networks trained alike, accuracy of each at every size."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import ROOT, record

from timm_wsms import scale
from timm_wsms.evaluation.options import ScaleOptions
from timm_wsms.training.whole import write_text

PLAIN = "plain"  # the form that others are compared with


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
    """

    form: Form
    group: str
    words: tuple[str, ...]
    seed: int
    source: str | None = None

    def folder(self, outputs: Path) -> Path:
        return outputs / f"{self.form.name}_{self.group}_seed{self.seed}".replace(" ", "_")

    def model(self, outputs: Path) -> Path:
        return self.folder(outputs) / "model"


def parser(text: str | None, outputs: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """The options that all these experiments have."""
    options = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--source", help="a local folder with the data; without it, the recipe's Hub name")
    options.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    options.add_argument("--forms", nargs="+", help="only these")
    options.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options.add_argument("--threads", type=int, default=1, help="threads a run")
    options.add_argument("--limit", type=int, default=10_000, help="test images")
    options.add_argument("--epochs", type=int, help="instead of the recipe's: another experiment, for a quick look")
    options.add_argument("--outputs", type=Path, default=ROOT / "outputs" / outputs)
    options.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / f"{outputs}.json")
    options.add_argument("--only_collect", action="store_true", help="train nothing, evaluate what is finished")
    return options


def train_all(runs: Sequence[Run], recipe: str, options: argparse.Namespace) -> None:
    """Trains what is not yet trained, in the order given; what was interrupted goes on."""
    if options.only_collect:
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in [pool.submit(_train, run, recipe, options) for run in runs]:
            done.result()


def _train(run: Run, recipe: str, options: argparse.Namespace) -> None:
    """Runs the script, in a process of its own with its share of the threads."""
    output = run.folder(options.outputs.resolve())
    if (output / "model").exists():
        return
    command = [sys.executable, "train_accelerate.py", "--recipe", recipe, "--model", run.form.model]
    command += [*run.form.words, *run.words, "--seed", str(run.seed), "--output", str(output), "--resume", "auto"]
    source = run.source or options.source
    command += ["--data.source", str(Path(source).resolve())] if source else []
    command += ["--epochs", str(options.epochs)] if options.epochs else []
    output.mkdir(parents=True, exist_ok=True)
    print(f"{output.name}: training", flush=True)
    with open(f"{output}.log", "w", encoding="utf-8") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    if not (output / "model").exists():
        raise SystemExit(f"{output.name} was stopped and has saved where it is; the same command goes on")


def collect(runs: Sequence[Run], sizes: Sequence[float], what: str, options: argparse.Namespace) -> dict[str, Any]:
    """Evaluates the finished runs at all sizes and writes the results file.

    Runs of one group and one seed are compared on the same images: McNemar's test at every size, and the difference of
    the areas under the curves with its bootstrap interval.
    """
    finished = [run for run in runs if run.model(options.outputs).exists()]
    found: dict[Run, dict[str, Any]] = {}
    against: dict[Run, dict[str, Any]] = {}
    for group, seed in dict.fromkeys((run.group, run.seed) for run in finished):
        together = {str(run.model(options.outputs)): run for run in finished if (run.group, run.seed) == (group, seed)}
        source = next(iter(together.values())).source or options.source or "uoft-cs/cifar10"
        chosen = ScaleOptions(data=source, limit=options.limit, factors=[*sizes])
        figures = scale.scale([*together], chosen)
        labels = dict(zip((one["model"] for one in figures["models"]), together.values(), strict=True))
        found |= {labels[one["model"]]: one for one in figures["models"]}
        for pair in figures["comparisons"]:
            if labels[pair["first"]].form.name == PLAIN:
                against[labels[pair["second"]]] = pair
    rows = [_row(form, group, found, against) for form, group in dict.fromkeys((run.form, run.group) for run in runs)]
    report = {"what": what, **record(), "recipe_words": _words(runs), "test_images": options.limit, "forms": rows}
    write_text(options.results, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print("\n".join(map(describe, rows)))
    return report


def _row(form: Form, group: str, found: dict[Run, dict[str, Any]], against: dict[Run, dict[str, Any]]) -> dict:
    """Mean and standard deviation over the seeds of one form, and each seed's figures."""
    runs = [run for run in found if (run.form, run.group) == (form, group)]
    one_each = [
        {
            "seed": run.seed,
            **{key: found[run][key] for key in ("weights_sha256", "at_one", "area", "area_interval", "top1")},
            "against_plain": against.get(run) and _of_pair(against[run]),
        }
        for run in runs
    ]
    return {
        "form": form.name,
        "group": group,
        "model": form.model,
        "settings": " ".join(form.words),
        "n": len(runs),  # 0: not run
        "parameters": found[runs[0]]["parameters"] if runs else None,
        "sizes": list(found[runs[0]]["factors"]) if runs else None,
        "at_one": spread(one["at_one"] for one in one_each),
        "area": spread(one["area"] for one in one_each),
        "top1": [spread(at_size) for at_size in zip(*(one["top1"] for one in one_each), strict=True)],
        "seeds": one_each,
    }


def _of_pair(pair: dict[str, Any]) -> dict[str, Any]:
    names = {"only_first": "only_plain", "only_second": "only_this", "p": "p"}
    renamed = {new: pair[old] for old, new in names.items()}
    return {**renamed, "area_difference": pair["area_difference"], "area_interval": pair["area_interval"]}


def _words(runs: Sequence[Run]) -> dict[str, str]:
    return {run.group: " ".join(run.words) for run in runs}


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
