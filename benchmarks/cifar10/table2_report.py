"""The report of the paper's Table 2: error rates of what was trained, next to the paper's."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cifar10.gpu_forms import FORMS
from benchmarks.common.sweep import spread, write_json


def report(paths: Sequence[Path], results: Path) -> None:
    """Writes the report of one or more sessions' `table2.json`, and prints it."""
    sessions = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    runs = [run for session in sessions for run in session["runs"]]
    lines = rows(runs)
    timings = [session.get("timings") for session in sessions]
    what = "CIFAR-10, test error in %, next to the paper's Table 2; seconds are of all seeds that were trained at once"
    write_json(results, {"what": what, "forms": lines, "timings": timings, "runs": runs})
    print("\n".join(map(describe, lines)))


def rows(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each schedule and form: error's mean and deviation, n, the paper's, and seed by seed minus plain's."""
    found = []
    for schedule in dict.fromkeys(run["schedule"] for run in runs):
        errors: dict[str, dict[int, float]] = {}
        seconds: dict[str, list[float]] = {}
        for run in runs:
            if run["schedule"] == schedule:
                errors.setdefault(run["form"], {})[run["seed"]] = run["test_error"]
                seconds.setdefault(run["form"], []).append(run["seconds_of_all_seeds"] / run["seeds_at_once"])
        plain = errors.get("plain", {})
        found += [
            {
                "form": name,
                "schedule": schedule,
                "n": len(errors[name]),
                "test_error": spread(errors[name].values()),
                "paper": form.paper,
                "against_plain": {
                    seed: round(error - plain[seed], 3) for seed, error in errors[name].items() if seed in plain
                },
                "seconds_a_seed": round(statistics.mean(seconds[name]), 1),
            }
            for name, form in FORMS.items()
            if name in errors
        ]
    return found


def describe(row: dict[str, Any]) -> str:
    error = f"{row['test_error']['mean']:.2f} ± {row['test_error']['std'] or 0:.2f} % error"
    paper = "no such row" if row["paper"] is None else f"{row['paper']:.2f} %"
    told = f"n = {row['n']}, {row['seconds_a_seed']:.0f} s a seed; the paper: {paper}"
    return f"{row['form']:10} {error} ({told}); schedule: {row['schedule']}"
