"""Prints the tables of docs/results.md that come from many runs, to be pasted there.

    python -m benchmarks.object_size.report_tables

From unseen_sizes.json, mnist_scale.json and mnist_sizes.json. Tests compare the document with them.
"""

import json
import statistics
from typing import Any

from benchmarks.common.environment import ROOT

RESULTS = ROOT / "benchmarks" / "results"
TRAINED = {"size 1": "at size 1", "jitter": "at 0.5 to 2"}
NETWORKS = {
    "plain": "plain",
    "deeper": "deeper, ResNet-26",
    "ms": "MS",
    "concat": "concat, the paper's",
    "mean": "mean, 1, 0.5, 0.25",
    "mean 1 .5": "mean, 1, 0.5",
    "mean 1 .5 each": "the same, loss of each stage",
    "mean 1 .5 each, own statistics": "the same, own statistics",
    "mean 1 .5 each, shared norms": "the same, shared norms",
}
CNNS = {
    "plain": "plain",
    "concat": "concat, the paper's, fewer channels",
    "ms": "MS, fewer channels",
    "mean 1.4 1 0.7": "mean at 1.4, 1, 0.7",
    "mean 1.4 1 0.7, each": "mean at 1.4, 1, 0.7, loss of each stage",
}
CNN_GROUPS = ["28", "28+", "56", "56+", "28, 60 epochs", "56+, 60 epochs"]
DIGITS_OF = ["28", "56+"]
STAGES_CELLS = 8  # plain, the whole network, without each of three stages, each alone
Report = dict[tuple[str, str], dict[str, Any]]  # (form, group) → its row of the results


def load(name: str) -> Report:
    """The rows of a results file that size_sweep.collect wrote."""
    report = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return {(row["form"], row["group"]): row for row in report["forms"]}


def sizes_figures(row: dict[str, Any]) -> str:
    """Top-1 at each size, area, and the area's difference to plain in each seed: the cells right of the name."""
    against = [seed["against_plain"]["area_difference"] for seed in row["seeds"] if seed["against_plain"]]
    area = f"{row['area']['mean']:.2f} ± {row['area']['std']:.2f}"
    return " | ".join([*(f"{size['mean']:.1f}" for size in row["top1"]), area, ", ".join(map(signed, against))])


def sizes_table(report: Report) -> list[str]:
    """The lines of experiment 2's table, without its head."""
    return [
        f"| {TRAINED[group]} | {name} | {report[form, group]['n']} | {sizes_figures(report[form, group])} |"
        for group in TRAINED
        for form, name in NETWORKS.items()
    ]


def errors(row: dict[str, Any]) -> str:
    """Error in %, mean ± deviation, and the number of seeds."""
    if not row["n"]:
        return "not run"
    deviation = "" if row["at_one"]["std"] is None else f" ± {row['at_one']['std']:.2f}"
    return f"{100 - row['at_one']['mean']:.2f}{deviation} ({row['n']})"


def errors_table(report: Report) -> list[str]:
    """The lines of experiment 1's table, without its head."""
    return [
        f"| {name} | {' | '.join(errors(report[form, group]) for group in CNN_GROUPS)} |" for form, name in CNNS.items()
    ]


def digits_table(report: dict[str, Any]) -> list[str]:
    """The lines of MNIST-scale's errors by the digit's size, without their head."""
    rows = {(row["form"], row["group"]): row["errors"] for row in report["forms"]}
    return [
        f"| {group} | {name} | " + " | ".join(f"{at['mean']:.2f}" for at in rows[form, group]) + " |"
        for group in DIGITS_OF
        for form, name in CNNS.items()
        if (form, group) in rows
    ]


def stages_table(report: dict[str, Any]) -> list[str]:
    """The lines of the errors without each stage and of each alone, means over seeds, without their head."""
    lines = []
    for form, name in CNNS.items():
        rows = [row for row in report["stages"] if row["form"] == form]
        parts = zip(*([row["plain"], row["whole"], *row["without"], *row["alone"]] for row in rows), strict=True)
        if cells := [f"{statistics.mean(one['all'] for one in part):.2f}" for part in parts]:
            lines.append(f"| {name} | {len(rows)} | " + " | ".join(cells + [""] * (STAGES_CELLS - len(cells))) + " |")
    return lines


def signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")


def main() -> None:
    digits = json.loads((RESULTS / "mnist_sizes.json").read_text(encoding="utf-8"))
    sizes = load("unseen_sizes")
    tables = (sizes_table(sizes), errors_table(load("mnist_scale")))
    for lines in (*tables, digits_table(digits), stages_table(digits)):
        print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
