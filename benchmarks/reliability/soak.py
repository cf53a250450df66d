"""A training job under a random schedule of faults, to its end. Writes results/reliability/soak.json.

    python -m benchmarks.reliability.soak --hours 1 [--seed 0]

One run (two-stage test_resnet on 160 images, which a worker decodes and crops at random; mixup, cutmix, dropout,
gradient accumulation, moving average; a checkpoint every 5 updates) on a small disk of its own. Each fault of
`soak_faults.py` strikes equally often, in random order, at a random update; then the run is resumed, until it is done.
Survived means that the run ended as documented, in one line if it is an error, and could be resumed or went on; equal,
that its weights, metrics, moving average and optimizer state in the end are those of an undisturbed run, bit for bit.
Lost time is that from the fault until the update that it struck has begun again. Growth: memory, open files and threads
at the same update of each life, and over the undisturbed run, which is one long life; and what is left in the end:
half-written files, shared memory, and the temporary folders of Python's multiprocessing, which a process killed by
SIGKILL cannot remove.
Claim: all survived, equal, no growth. Needs Linux, strace and the right to mount.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.environment import ROOT, record
from benchmarks.reliability import soak_faults
from benchmarks.reliability.soak_job import Job, Lost, place
from tests.helpers.fault_runs import Server, left_by

GAP = 12.0  # updates between two faults, on average
UPDATES = 10  # of an epoch
WARM = 5  # updates of a life after which it is sampled: workers started, memory allocated
OUT = ROOT / "benchmarks" / "results" / "reliability" / "soak.json"
Samples = list[list[float]]


@dataclass
class Strike:
    """One fault that has struck."""

    kind: str
    update: int
    lost: float | None = None  # seconds
    wrong: str = ""


@dataclass
class Soak:
    """A job, and the faults that have struck it.

    Attributes:
        job: the run.
        schedule: updates and kinds of faults to come, the next one first.
        strikes: those that were.
        samples: of each life, what it logged.
    """

    job: Job
    schedule: list[tuple[int, str]]
    draw: random.Random
    strikes: list[Strike] = field(default_factory=list)
    samples: list[Samples] = field(default_factory=list)

    def run(self) -> None:
        """Runs until the job is done."""
        since: tuple[Strike, float] | None = None
        while True:
            self.job.start(self._order())
            if since:
                self._regained(*since)
            since = self._life()
            self.samples.append(self.job.steps())
            if since is None:
                return

    def _order(self) -> str:
        """What the next life's driver has to do itself, if it comes before the life's end."""
        for update, kind in self.schedule:
            fault = soak_faults.KINDS[kind]
            if fault.order:
                return f"{fault.order} 0 {update}"
            if fault.codes:
                break
        return ""

    def _life(self) -> tuple[Strike, float] | None:
        """Strikes one life until it ends; returns its last fault and when that was, or None if the job is done."""
        while self.schedule:
            update, kind = self.schedule.pop(0)
            fault = soak_faults.KINDS[kind]
            if not fault.order and not self.job.reach(update):
                break
            strike = Strike(kind, self.job.update())
            moment = time.monotonic()
            fault.strike(self.job, self.draw)
            if fault.codes:
                strike.update = max(strike.update, self.job.update())
                self._note(strike, soak_faults.complaint(fault, self.job))
                return strike, moment
            self._note(strike, "")
            self._regained(strike, moment, strike.update + 1)
        if code := self.job.wait(3600):
            raise Lost(f"it ended with {code} without a fault: {self.job.text()[-500:]}")
        return None

    def _note(self, strike: Strike, wrong: str) -> None:
        strike.wrong = wrong
        self.strikes.append(strike)
        print(f"{len(self.strikes)}, update {strike.update}: {strike.kind} {wrong}", file=sys.stderr, flush=True)
        if wrong:
            print(self.job.text()[-3000:], file=sys.stderr, flush=True)

    def _regained(self, strike: Strike, moment: float, update: int | None = None) -> None:
        """Waits until a life has come back to where it was struck."""
        update = strike.update if update is None else update
        if self.job.reach(update):
            strike.lost = next(when for number, when, *_ in self.job.steps() if number >= update) - moment

    def undisturbed(self, other: Job) -> tuple[dict[str, Any], Samples, float]:
        """Lets another job run to its end; returns what it leaves, what it logged, and its seconds."""
        other.start()
        if code := other.wait(24 * 3600):
            raise Lost(f"the undisturbed run ended with {code}: {other.text()[-500:]}")
        return left_by(other.output), other.steps(), time.monotonic() - other.started


def schedule(updates: int, seed: int) -> list[tuple[int, str]]:
    """Faults for a run of `updates` updates: all kinds equally often, at random times."""
    draw, found, update, deck = random.Random(seed), [], 6, list[str]()
    while True:
        update += 1 + int(draw.expovariate(1 / GAP))
        if update >= updates - 2:
            return found
        if not deck:
            deck = draw.sample(sorted(soak_faults.KINDS), len(soak_faults.KINDS))
        found.append((update, deck.pop()))


def by_kind(strikes: list[Strike]) -> dict[str, dict[str, Any]]:
    """Tried, survived, and the seconds lost, of each kind of fault."""
    rows = defaultdict[str, list[Strike]](list)
    for strike in strikes:
        rows[strike.kind].append(strike)
    found = {}
    for kind in soak_faults.KINDS:
        lost = [strike.lost for strike in rows[kind] if strike.lost is not None]
        found[kind] = {
            "tried": len(rows[kind]),
            "survived": sum(not strike.wrong for strike in rows[kind]),
            "seconds_lost_median": round(statistics.median(lost), 1) if lost else None,
            "seconds_lost_most": round(max(lost), 1) if lost else None,
        }
    return found


def growth(lives: list[Samples], whole: Samples) -> dict[str, Any]:
    """What a process holds: over one long life, and over all lives, each sampled after as many updates."""
    sampled = [life[WARM][2:] for life in lives if len(life) > WARM]
    third = max(1, len(sampled) // 3)
    names, scales = ("memory_mib", "open_files", "threads"), (2**20, 1, 1)

    def medians(rows: list[list[float]]) -> dict[str, float]:
        return {
            name: round(statistics.median(row[column] for row in rows) / scale, 1)
            for column, (name, scale) in enumerate(zip(names, scales, strict=True))
        }

    tenth = max(1, len(whole) // 10)
    return {
        "lives": len(lives),
        "lives_sampled": len(sampled),
        "sampled_after_updates": WARM,
        "first_third_of_the_lives": medians(sampled[:third]),
        "last_third_of_the_lives": medians(sampled[-third:]),
        "undisturbed_updates": len(whole),
        "undisturbed_second_tenth": medians([row[2:] for row in whole[tenth : 2 * tenth]]),
        "undisturbed_last_tenth": medians([row[2:] for row in whole[-tenth:]]),
    }


def epochs_for(hours: float, folder: Path, server: Server, seed: int) -> int:
    """How many epochs the soak takes for so long, by a short run: half of the time for the updates, half for starts."""
    job = Job(server, folder, 2, seed)
    job.output = job.disk / "first"
    Soak(job, [], random.Random(0)).undisturbed(job)  # imports what is imported late
    job.output = job.disk / "second"
    _, steps, _ = Soak(job, [], random.Random(0)).undisturbed(job)
    update = (steps[-1][1] - steps[0][1]) / (len(steps) - 1)
    start = steps[0][1] - job.started + 2.5 * update + 4  # the updates to do again; and some faults wait
    print(f"{update:.2f} s for an update, {start:.2f} s for a fault", file=sys.stderr, flush=True)
    return max(3, int(3600 * hours / (UPDATES * (update + start / GAP))))


def main(argv: list[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    if missing := soak_faults.tools_missing():
        sys.exit(f"error: {', '.join(missing)} not found; install them to run the soak")
    with place() as folder, Server(STEP_LOGS="1", TMPDIR=str(folder / "disk" / "tmp")) as server:
        epochs = options.epochs or epochs_for(options.hours, folder, server, options.seed)
        soak = Soak(
            Job(server, folder, epochs, options.seed),
            schedule(UPDATES * epochs, options.seed),
            random.Random(options.seed + 1),
        )
        print(f"{epochs} epochs, {len(soak.schedule)} faults", file=sys.stderr, flush=True)
        started = time.monotonic()
        soak.run()
        seconds, disturbed = time.monotonic() - started, left_by(soak.job.output)
        left, temporary = soak_faults.left_overs(soak.job), len(list((soak.job.disk / "tmp").glob("pymp-*")))
        whole_job = Job(server, folder, epochs, options.seed)
        whole_job.output, whole_job.lives = soak.job.disk / "whole", 100_000
        whole, steps, whole_seconds = soak.undisturbed(whole_job)
    faults = by_kind(soak.strikes)
    report = {
        "what": __doc__.split("\n\n")[2].replace("\n", " "),
        **record(),
        "seed": options.seed,
        "epochs": epochs,
        "updates": UPDATES * epochs,
        "minutes": round(seconds / 60, 1),
        "undisturbed_minutes": round(whole_seconds / 60, 1),
        "equal": disturbed == whole,
        "total": {key: sum(row[key] for row in faults.values()) for key in ("tried", "survived")},
        "faults": faults,
        "wrong": [f"{strike.kind}, update {strike.update}: {strike.wrong}" for strike in soak.strikes if strike.wrong],
        "growth": growth(soak.samples, steps),
        "left_over_files": left,
        "left_over_temporary_folders": temporary,
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: report[key] for key in ("minutes", "equal", "total", "wrong", "left_over_files")}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0, help="about how long, without the undisturbed run")
    parser.add_argument("--epochs", type=int, help="instead: exactly how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(OUT))
    return parser


if __name__ == "__main__":
    main()
