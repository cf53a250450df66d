"""Tries every architecture of timm as `wsms_<name>`: one row a name in results/coverage.csv, smallest first.

    python -m benchmarks.backbones.all_backbones --minutes 60              goes on where it stopped
    python -m benchmarks.backbones.all_backbones --names "swin_*" --retry  tries again what failed
    python -m benchmarks.backbones.all_backbones --shard 1/2               half of the names; another process has 2/2

Four checks a name, on two square images of the smallest side that works (checks.py):

- forward: in train mode, logits of the backbone's shape, all finite;
- backward: a gradient for every parameter that is not zero throughout;
- state_dict: written with safetensors and loaded strictly into a second network, it gives equal logits;
- warm_start: from a checkpoint of the backbone with weights and norm statistics drawn at random, the logits are the
  backbone's, bit for bit.

Above 300 M parameters nothing is computed (`checked` is "meta"): shapes, gradients that exist, keys and shapes of the
state dict, on PyTorch's meta device.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import fnmatch
import io
import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.backbones.checks import CHECKS, Row, check
from benchmarks.common.environment import ROOT

FIELDS = ("name", "file", "backbone_params", "wsms_params", "kind", "input_size", "checked", *CHECKS)
FIELDS += ("cpu_seconds", "timm", "error")
TABLE = ROOT / "benchmarks" / "results" / "coverage.csv"
INTERRUPTED = "interrupted: the process ended in the middle"


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    stop = time.monotonic() + 60 * arguments.minutes
    part, parts = (int(number) for number in arguments.shard.split("/"))
    table = Table(Path(arguments.out))
    names = [name for name in backbones()[part - 1 :: parts] if matches(name, arguments.names)]
    todo = [row for row in described(names, table) if not row["checked"] or (arguments.retry and not succeeded(row))]
    for row in sorted(todo, key=order)[: arguments.limit]:
        if time.monotonic() > stop:
            break
        table.update([row | {"checked": "real", "error": INTERRUPTED}])
        row = check(row, arguments.timeout)
        table.update([row])
        print(*(row[key] for key in ("name", "input_size", "checked", *CHECKS, "cpu_seconds", "error")), flush=True)
    print(tally(table.read().values()))


class Table:
    """The CSV file: sorted by size, one row a name. Several processes may write to it at once."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, Row]:
        """Name → row."""
        if not self.path.exists():
            return {}
        with self.path.open(newline="", encoding="utf-8") as file:
            return {row["name"]: row for row in csv.DictReader(file)}

    def update(self, rows: Iterable[Row]) -> None:
        """Puts rows in, in place of those of the same names."""
        with locked(self.path.parent):
            merged = self.read() | {row["name"]: row for row in rows}
            text = io.StringIO()
            writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(merged.values(), key=order))
            new = self.path.with_suffix(".new")
            new.write_text(text.getvalue(), encoding="utf-8")
            new.replace(self.path)  # so that whoever reads finds a whole file


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other process holds the folder, and holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which gives the lock back


def backbones() -> list[str]:
    """timm's own architectures, without those that anybody else has registered."""
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.models.")]


def describe(name: str) -> Row:
    """What is known of a backbone before it is tried; it is built on the meta device, which costs no memory."""
    with torch.device("meta"):
        backbone: Any = timm.create_model(name)
    resolutions = {entry["reduction"] for entry in backbone.feature_info}
    fixed = backbone.default_cfg.get("fixed_input_size")
    file = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    row = dict.fromkeys(FIELDS, "") | {"name": name, "file": file, "timm": timm.__version__}
    row["kind"] = "flat" if len(resolutions) == 1 else "fixed" if fixed else "free"
    row["backbone_params"] = str(sum(parameter.numel() for parameter in backbone.parameters()))
    return row


def described(names: list[str], table: Table) -> list[Row]:
    """The rows of the names; those that the table lacks for this version of timm are added to it."""
    rows = {name: row for name, row in table.read().items() if row["timm"] == timm.__version__}
    missing = [name for name in names if name not in rows]
    for start in range(0, len(missing), 50):
        new = [describe(name) for name in missing[start : start + 50]]
        table.update(new)
        rows |= {row["name"]: row for row in new}
    return [rows[name] for name in names]


def smallest_of_each_file(rows: Iterable[Row]) -> list[Row]:
    """The row with the fewest parameters of each of timm's model files, smallest first."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=order):
        found.setdefault(row["file"], row)
    return [*found.values()]


def succeeded(row: Row) -> bool:
    """Whether every check of a row has passed."""
    return all(row[key] == "ok" for key in CHECKS)


def tally(rows: Iterable[Row]) -> str:
    """How many names there are of each outcome, in words."""

    def outcome(row: Row) -> str:
        if succeeded(row):
            return "ok" if row["checked"] == "real" else "ok on the meta device"
        return {"": "not tried yet", "not staged": "not staged"}.get(row["checked"], "failed")

    return ", ".join(f"{number} {what}" for what, number in Counter(map(outcome, rows)).most_common())


def order(row: Row) -> tuple[int, str]:
    return int(row["backbone_params"]), row["name"]


def matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=["*"], help="backbones, with wildcards")
    parser.add_argument("--limit", type=int, help="of the names that are left, the N smallest")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no name after so many")
    parser.add_argument("--retry", action="store_true", help="also those that failed or could not be staged")
    parser.add_argument("--shard", default="1/1", help="i/n: the i-th of n parts of the names")
    parser.add_argument("--timeout", type=int, default=300, help="seconds of processor time a name may take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default=str(TABLE))
    return parser


if __name__ == "__main__":
    main()
