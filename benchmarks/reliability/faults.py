"""How many faults a run survives, and whether its result is that of an undisturbed run. Writes results/faults.json.

    python -m benchmarks.reliability.faults [--kills 50] [--seed 0]

A run of six steps (WSMS-ResNet-20 on 50 digits; mixup, cutmix, dropout, gradient accumulation, moving average; a
checkpoint after every step) is killed by SIGKILL at random moments, half of them while a checkpoint is being written,
and each time resumed, until it is done. Survived means that it could be resumed; equal, that metrics, weights, moving
average and optimizer state are those of a run that nothing happened to, bit for bit. The same for every file of its
newest checkpoint: cut off at half, deleted, one bit flipped. Claim: all survived, all equal.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.environment import ROOT, record
from tests.helpers.fault_runs import ONE, Server, killed_and_resumed, left_by

KILLS_A_RUN = 5  # it has six steps


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        faults = Faults(server, Path(folder))
        found = {
            "SIGKILL at a random moment": faults.killed(arguments.kills // 2, arguments.seed, saving=False),
            "SIGKILL while a checkpoint is written": faults.killed(
                arguments.kills - arguments.kills // 2, arguments.seed + 1, saving=True
            ),
            **faults.damaged(arguments.seed),
        }
    total = {key: sum(row[key] for row in found.values()) for key in ("tried", "survived", "equal")}
    report = {"what": __doc__.split("\n\n")[2].replace("\n", " "), **record(), "total": total, "faults": found}
    Path(arguments.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, row in {**found, "total": total}.items():
        print(f"{name}: {row['tried']} tried, {row['survived']} survived, {row['equal']} equal")


class Faults:
    """Runs with faults, and the run that they are compared with."""

    def __init__(self, server: Server, folder: Path):
        self.server, self.folder, self.number = server, folder, 0
        self.result(folder / "first")  # starts the server and reads the images
        started = time.monotonic()
        self.expected = self.result(folder / "whole")
        self.seconds = time.monotonic() - started

    def run(self, folder: Path, fault: str = "") -> None:
        """Runs until it ends by itself."""
        folder.mkdir(exist_ok=True)
        self.server.start(folder / "log", *ONE, "--output", str(folder / "run"), fault=fault)
        if status := self.server.wait():
            raise RuntimeError(f"it ended with {status}: {(folder / 'log').read_text()}")

    def result(self, folder: Path) -> dict[str, Any]:
        """What a run leaves when nothing happens to it any more."""
        self.run(folder)
        return left_by(folder / "run")

    def killed(self, times: int, seed: int, saving: bool) -> dict[str, int]:
        """Kills runs so many times."""
        draw, row = random.Random(seed), {"tried": 0, "survived": 0, "equal": 0}
        while row["tried"] < times:
            folder = self.folder / f"killed-{seed}-{row['tried']}"
            folder.mkdir()
            count = min(KILLS_A_RUN, times - row["tried"])
            longest = 0.03 if saving else 0.95 * self.seconds
            delays = [draw.uniform(0, longest) for _ in range(count)]
            try:
                met = killed_and_resumed(self.server, ONE, folder, delays, saving=saving)
                equal = left_by(folder / "run") == self.expected
                row = {
                    "tried": row["tried"] + met,
                    "survived": row["survived"] + met,
                    "equal": row["equal"] + met * equal,
                }
            except AssertionError as error:
                print(f"not survived: {error}", file=sys.stderr)
                row["tried"] += count
            shutil.rmtree(folder)
        return row

    def damaged(self, seed: int) -> dict[str, dict[str, int]]:
        """Damages every file of the newest of two checkpoints, in each way."""
        draw = random.Random(seed)
        stopped = self.folder / "stopped"
        self.run(stopped, fault="SIGTERM 0 4")

        def half(path: Path) -> None:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

        def flip(path: Path) -> None:
            data = bytearray(path.read_bytes())
            bit = draw.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)

        ways: dict[str, Callable[[Path], None]] = {
            "cut off at half": half,
            "deleted": Path.unlink,
            "one bit flipped": flip,
        }
        files = sorted(path.name for path in self.newest(stopped).iterdir())
        found = {}
        for way, damage in ways.items():
            row = {"tried": len(files), "survived": 0, "equal": 0}
            for name in files:
                folder = self.folder / "damaged"
                shutil.copytree(stopped, folder)
                damage(self.newest(folder) / name)
                try:
                    equal = self.result(folder) == self.expected
                    row["survived"] += (
                        "is damaged or missing; the checkpoint before it is used" in (folder / "log").read_text()
                    )
                    row["equal"] += equal
                except RuntimeError as error:
                    print(f"not survived: {error}", file=sys.stderr)
                shutil.rmtree(folder)
            found[f"a file of the newest checkpoint {way}"] = row
        return found

    @staticmethod
    def newest(folder: Path) -> Path:
        """The checkpoint it stopped at."""
        return folder / "run" / "checkpoints" / "epoch-0001-step-000002"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "faults.json"))
    return parser


if __name__ == "__main__":
    main()
