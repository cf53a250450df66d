"""What searches have in common: variants of a network trained alike, each compared with the one it differs from."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.backbones.all_backbones import locked
from benchmarks.common.environment import ROOT, record
from timm_wsms.files import atomic_write_text

PLAIN = "plain"


def parser(text: str | None, name: str, variants: Sequence[str], **defaults: Any) -> argparse.ArgumentParser:
    """The options that searches have."""
    options = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--source", help="a local folder with the data; without it, the Hub's")
    options.add_argument("--variants", nargs="+", choices=variants, default=list(variants), metavar="VARIANT")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options.add_argument("--train_limit", type=int, help="train on the first so many images")
    options.add_argument("--test_limit", type=int, help="evaluate on the first so many images")
    options.add_argument("--epochs", type=int)
    options.add_argument("--results", type=Path, default=ROOT / f"benchmarks/results/{name}.json")
    options.add_argument("--note", default="", help="what else went on on the machine")
    options.set_defaults(**defaults)
    return options


def search(
    bases: Mapping[str, str],
    train: Callable[[str, int], dict[str, Any]],
    what: str,
    options: argparse.Namespace,
) -> None:
    """Trains what does not stand in the results file yet; adds to the file after every run.

    Args:
        bases: Variant → the one that it differs from in one thing.
        train: (variant, seed) → what came out, `test_top1` among it.
        what: Is measured.
        options: From `parser`.

    Raises:
        SystemExit: The file holds runs of other lengths.
    """
    lengths = {"train_images": options.train_limit, "test_images": options.test_limit, "epochs": options.epochs}

    def known() -> list[dict[str, Any]]:
        report = json.loads(options.results.read_text()) if options.results.exists() else {**lengths, "runs": []}
        if any(report[key] != value for key, value in lengths.items()):
            raise SystemExit(f"{options.results} holds runs of other lengths; give the same ones, or another --results")
        return report["runs"]

    for seed in options.seeds:
        for name in options.variants:
            if any((run["variant"], run["seed"]) == (name, seed) for run in known()):
                continue
            machine = record()["machine"]
            found = {"variant": name, "seed": seed, **train(name, seed), "device": machine["gpu"] or machine["cpu"]}
            with locked(options.results.parent):  # another process may search among other variants
                runs = [*known(), found]
                report = {"what": what, **record(), **lengths, "note": options.note, "variants": summarize(runs, bases)}
                atomic_write_text(
                    options.results, json.dumps({**report, "runs": runs}, indent=2, ensure_ascii=False) + "\n"
                )
            print(json.dumps(found, ensure_ascii=False), flush=True)
    for row in summarize(known(), bases):
        accuracy = f"{row['test_top1_mean']:.2f} ± {row['test_top1_std'] or 0:.2f}"
        gains = ", ".join(f"{gain:+.2f}" for gain in row["gain_on_plain"].values())
        print(f"{row['variant']:36} {accuracy} %, on plain {gains or '–'}")


def summarize(runs: Sequence[dict[str, Any]], bases: Mapping[str, str]) -> list[dict[str, Any]]:
    """For each variant: accuracy's mean and standard deviation over seeds, and its gains on plain and on its base."""
    top1: dict[str, dict[int, float]] = {}  # variant → seed → accuracy
    for run in runs:
        top1.setdefault(run["variant"], {})[run["seed"]] = run["test_top1"]

    def gain(name: str, over: str) -> dict[int, float]:
        shared = sorted(top1[name].keys() & top1.get(over, {}).keys())
        return {seed: round(top1[name][seed] - top1[over][seed], 2) for seed in shared}

    return [
        {
            "variant": name,
            "n": len(top1[name]),
            "test_top1_mean": statistics.mean(top1[name].values()),
            "test_top1_std": statistics.stdev(top1[name].values()) if len(top1[name]) > 1 else None,
            "gain_on_plain": gain(name, PLAIN),
            "base": base,
            "gain_on_base": gain(name, base),
        }
        for name, base in bases.items()
        if name in top1
    ]
