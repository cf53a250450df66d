"""What becomes of a run on two machines when something happens to one, or to the network between them.

    python -m benchmarks.reliability.machines [--only NAME ...] [--seed 0]      # needs root, Linux, libfaketime

Machines are network namespaces with a torchrun each (tests/helpers/machines.py); the run has six steps (WSMS-ResNet-20
on 50 digits; mixup, cutmix, dropout, gradient accumulation, moving average; a checkpoint after every step) and waits at
its fifth for the fault. It has to go on, or to end with a line that names the machine, and then to be resumed; either
way it has to end bit for bit as an undisturbed run. Each fault is tried once. Results are written after every fault;
those that are not tried again stay.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common.environment import ROOT, record
from benchmarks.reliability import machine_elastic, machine_faults
from tests.helpers.fault_runs import ONE, left_by, wait_for
from tests.helpers.machine_runs import HERE, Job, Launchers, newest
from tests.helpers.machines import NamespaceMachine, machines

OUT = ROOT / "benchmarks" / "results" / "reliability" / "machines.json"
BEFORE, AFTER = "epoch-0001-step-000001", "epoch-0001-step-000002"  # the newest checkpoints around the fault


@dataclass
class Trial:
    """A run on two machines that meets a fault.

    Attributes:
        folder: of the trial.
        output: of the run.
        pair: the machines; `strike` and `heal` may replace them.
        starts: what starts each machine's launcher.
        jobs: the launchers.
        refused: lines of a resume that was refused before the one that counts.
    """

    fault: machine_faults.Fault
    folder: Path
    pair: list[NamespaceMachine]
    starts: list[Launchers]
    jobs: list[Job] = field(default_factory=list)
    refused: list[list[str]] | None = None

    @property
    def output(self) -> Path:
        return self.folder / "output" / "run"

    @property
    def seen(self) -> Path:
        """The output as the first machine sees it."""
        return Path(f"/proc/{self.pair[0].pid}/root{self.output}") if self.fault.own_folders else self.output

    def start(self, wait: bool) -> None:
        """Starts the launchers; the run waits before its fifth step if it is to."""
        words = [*ONE, "--hang_timeout", str(self.fault.hang_timeout), "--output", str(self.output)]
        fault = f"wait:{self.folder / 'go'} 1 4" if wait else ""
        for machine, starts in zip(self.pair, self.starts, strict=True):
            options = [*machine.torchrun(self.pair[0], 2), *self.fault.torchrun]
            self.jobs.append(starts.launch(machine, self.folder / machine.name, options, *words, fault=fault))

    def run(self, expected: dict[str, Any]) -> dict[str, Any]:
        """Lets it all happen; returns what did."""
        machine_faults.prepare(self)
        self.start(wait=True)
        wait_for(lambda: newest(self.seen) == BEFORE, 300)
        begun = time.monotonic()
        self.fault.strike(self)
        row = self._outcome(begun)
        for job in self.jobs:
            job.end()
        if row["codes"] == [0, 0]:
            return {**row, "equal": (self.seen / "model").exists() and left_by(self.seen) == expected}
        self.fault.heal(self)
        kept = newest(self.seen)
        self.jobs = []
        self.start(wait=False)
        codes = [job.wait(300) for job in self.jobs]
        if self.refused is not None:
            row["refused"] = [[line.replace(str(self.folder), "…") for line in lines] for lines in self.refused]
        return {**row, "kept": kept, "resumed": codes == [0, 0], "equal": left_by(self.seen) == expected}

    def _outcome(self, begun: float) -> dict[str, Any]:
        (self.folder / "go").touch()
        line: list[float | None] = [None, None]
        ended: list[float | None] = [None, None]
        went_on = None
        while None in ended and time.monotonic() - begun < self.fault.limit:
            now = round(time.monotonic() - begun, 1)
            for number, job in enumerate(self.jobs):
                if job.lines and line[number] is None:
                    line[number] = now
                if job.code is not None and ended[number] is None:
                    ended[number] = now
            if went_on is None and newest(self.seen) >= AFTER:
                went_on = now
            time.sleep(0.1)
        (self.folder / "texts").write_text("\n=====\n".join(job.text for job in self.jobs))
        return {
            "codes": [job.code for job in self.jobs],
            "lines": [[line.replace(str(self.folder), "…") for line in job.lines[:2]] for job in self.jobs],
            "seconds_until_line": line,
            "seconds_until_launcher_ended": ended,
            "seconds_until_next_checkpoint": went_on,
        }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*machine_faults.faults(0), machine_elastic.NAME])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    found = json.loads(options.out.read_text())["faults"] if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder, Launchers() as starts:
        faults = {**machine_faults.faults(options.seed), machine_elastic.NAME: None}
        names = options.only or list(faults)
        expected = undisturbed(starts, Path(folder) / "undisturbed") if any(faults[name] for name in names) else {}
        for number, name in enumerate(names):
            place, fault = Path(folder) / str(number), faults[name]
            row = tried(fault, place, starts, expected) if fault else machine_elastic.tried(place, starts)
            found[name] = {**row, "command": record()["command"]}
            print(name, json.dumps(found[name]), flush=True)
            found = {known: found[known] for known in faults if known in found}
            report = {"what": __doc__.split("\n\n")[2].replace("\n", " "), **record(), "seed": options.seed, "n": 1}
            options.out.write_text(
                json.dumps({**report, "faults": found}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )


def tried(fault: machine_faults.Fault, folder: Path, starts: Launchers, expected: dict[str, Any]) -> dict[str, Any]:
    """What comes of one fault."""
    (folder / "output").mkdir(parents=True)
    clock = {"LD_PRELOAD": machine_faults.FAKETIME, "FAKETIME": f"{fault.clock:+d}"}  # all of its clocks
    another = Launchers(**clock) if fault.clock else contextlib.nullcontext(starts)
    with another as second, machines(2, fault.cable) as pair:
        trial = Trial(fault, folder, pair, [starts, second])
        try:
            return trial.run(expected)
        except (AssertionError, OSError, ValueError, subprocess.CalledProcessError, psutil.Error) as error:
            texts = " | ".join(job.text[-3000:] for job in trial.jobs)
            print(f"not survived: {traceback.format_exc()} {texts}", flush=True)
            return {"failed": f"{type(error).__name__}: {str(error).partition(': ')[0]}", "equal": False}
        finally:
            for job in trial.jobs:
                job.end()
            machine_faults.tidy(trial)


def undisturbed(starts: Launchers, folder: Path) -> dict[str, Any]:
    """What a run of two processes on this computer leaves."""
    folder.mkdir()
    job = starts.launch(None, folder / "log", [*HERE, "--nproc_per_node", "2"], *ONE, "--output", str(folder / "run"))
    if job.wait(300):
        raise RuntimeError(job.text)
    return left_by(folder / "run")


if __name__ == "__main__":
    main()
