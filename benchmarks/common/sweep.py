"""What experiments of many training runs have in common: networks × ways of training × seeds, one record for each run.

A finished run leaves a record in benchmarks/results/<experiment>/, so that a sweep goes on where it stopped, several
processes may share it, and runs of several sessions and machines can be compared. The report is made from the records.
size_sweep.py is a sweep whose networks are evaluated at every size of the object.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.environment import ROOT, record
from timm_wsms.files import atomic_write_text

PLAIN = "plain"  # the form that others are compared with
Groups = Mapping[str, tuple[str, ...]]  # name of a group → settings that all its runs have
Record = dict[str, Any]


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
        """For files: letters, digits, dots and `+` of what it is called."""
        return re.sub(r"[^\w.+]+", "_", f"{self.form.name}_{self.group}_seed{self.seed}", flags=re.ASCII)

    def folder(self, outputs: Path) -> Path:
        return outputs / self.name

    def model(self, outputs: Path) -> Path:
        return self.folder(outputs) / "model"

    def record(self, results: Path) -> Path:
        return results.with_suffix("") / f"{self.name}.json"

    def settings(self, options: argparse.Namespace) -> list[str]:
        """What the run is told beyond its recipe."""
        return [*self.form.words, *self.words, *(["--epochs", str(options.epochs)] if options.epochs else [])]


Work = Callable[[Run, argparse.Namespace], Record]  # trains and evaluates; gives what came out


def parser(text: str | None, name: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """The options that all sweeps have."""
    options = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--source", help="a local folder with the data; without it, the recipe's Hub name")
    options.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    options.add_argument("--forms", nargs="+", help="only these networks")
    options.add_argument("--groups", nargs="+", help="only these ways of training")
    options.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options.add_argument("--threads", type=int, default=1, help="threads per run, where there are several")
    options.add_argument("--epochs", type=int, help="instead of the recipe's: another experiment, for a quick look")
    options.add_argument("--outputs", type=Path, default=ROOT / "outputs" / name)
    options.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / f"{name}.json")
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


def run_all(runs: Sequence[Run], work: Work, options: argparse.Namespace) -> None:
    """Does the runs that have no record yet, in the order given, and writes their records.

    Args:
        runs: From `choose`.
        work: A function of a module, or a `functools.partial` of one: with several jobs, each run is a process.
        options: From `parser`.

    Raises:
        SystemExit: A record is of other settings; or, several at a time, runs have failed. The others are finished.
    """
    for run in runs:
        path = run.record(options.results)
        if path.exists() and json.loads(path.read_text(encoding="utf-8"))["settings"] != run.settings(options):
            raise SystemExit(f"{path} is of other settings; remove it, or name another file with --results")
    todo = [run for run in runs if not (options.only_collect or run.record(options.results).exists())]
    if options.jobs == 1:
        for run in todo:
            _do_and_record(run, work, options)
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [*pool.map(partial(_fails_alone, work=work, options=options), todo)]
    if any(failed):
        names = ", ".join(run.name for run, fails in zip(todo, failed, strict=True) if fails)
        raise SystemExit(f"failed, as told above and in {options.outputs}/*.log: {names}")


def _fails_alone(run: Run, work: Work, options: argparse.Namespace) -> bool:
    """Does a run's work in a process of its own, so that one that is killed stops no other; tells whether it failed."""
    process = get_context("spawn").Process(target=_in_threads, args=(run, work, options))
    process.start()
    process.join()
    return process.exitcode != 0


def _in_threads(run: Run, work: Work, options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    _do_and_record(run, work, options)


def _do_and_record(run: Run, work: Work, options: argparse.Namespace) -> None:
    found = work(run, options)
    names = {"form": run.form.name, "group": run.group, "seed": run.seed, "model": run.form.model}
    whole = {**names, "settings": run.settings(options), **record(), **found}
    run.record(options.results).parent.mkdir(parents=True, exist_ok=True)
    write_json(run.record(options.results), whole)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """As text that Git can compare, in one step."""
    atomic_write_text(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def records_of(options: argparse.Namespace) -> list[Record]:
    """All records that there are, also of earlier calls.

    Raises:
        SystemExit: No run is finished.
    """
    folder = options.results.with_suffix("")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise SystemExit(f"no run is finished: there are no records in {folder}")
    return records


def spread(values: Iterable[float]) -> dict[str, float | None] | None:
    """Mean and standard deviation (None for one value); None of nothing."""
    several = [*values]
    if not several:
        return None
    deviation = statistics.stdev(several) if len(several) > 1 else None
    return {"mean": round(statistics.mean(several), 3), "std": None if deviation is None else round(deviation, 3)}


def collect_gains(bases: Mapping[str, str], what: str, options: argparse.Namespace) -> None:
    """Writes the report of a sweep whose runs each end in one `test_top1`, and prints a line for each form.

    Args:
        bases: Form → the one that it differs from in one thing.
        what: Is measured.
        options: From `parser`.
    """
    rows = gains(records_of(options), bases)
    write_json(options.results, {"what": what, **record(), "forms": rows})
    for row in rows:
        accuracy = f"{row['test_top1']['mean']:.2f} ± {row['test_top1']['std'] or 0:.2f}"
        on_plain = ", ".join(f"{gain:+.2f}" for gain in row["gain_on_plain"].values())
        print(f"{row['form']:36} {accuracy} %, on plain {on_plain or '–'}")


def gains(records: Sequence[Record], bases: Mapping[str, str]) -> list[Record]:
    """For each form: accuracy's mean and standard deviation, and seed by seed its gains on plain and on its base."""
    top1: dict[str, dict[int, float]] = {}  # form → seed → accuracy
    for one in records:
        top1.setdefault(one["form"], {})[one["seed"]] = one["test_top1"]

    def gain(name: str, over: str) -> dict[int, float]:
        shared = sorted(top1[name].keys() & top1.get(over, {}).keys())
        return {seed: round(top1[name][seed] - top1[over][seed], 2) for seed in shared}

    return [
        {
            "form": name,
            "n": len(top1[name]),
            "test_top1": spread(top1[name].values()),
            "gain_on_plain": gain(name, PLAIN),
            "base": base,
            "gain_on_base": gain(name, base),
        }
        for name, base in bases.items()
        if name in top1
    ]
