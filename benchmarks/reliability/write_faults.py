"""A fault in each single system call of a write: is what was there before, or what was written, there whole?

    python -m benchmarks.reliability.write_faults                # needs `strace`; about ten minutes

Each job of write_jobs.py runs in a process of its own, in which `strace` lets the n-th call of one kind fail with one
error, or kills the process at that call, for every n until the job makes no more such calls. Afterward

- a reader finds the old or the new content, byte for byte;
- a job that claims success has left the new content;
- an error that reaches the user is one line, not a traceback;
- the same job, started again, ends with the new content and leaves no temporary file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common.environment import ROOT, record
from benchmarks.reliability.write_jobs import Job, content, jobs
from timm_wsms import cli_errors

OUT = ROOT / "benchmarks" / "results" / "reliability" / "write_faults.json"
CALLS = ("openat", "write", "fsync", "mkdir", "rename", "unlink", "rmdir")
STRACE = {  # the kernel has several calls for the same thing
    "rename": "/^rename(at2?)?$",
    "unlink": "/^unlink(at)?$",
    "mkdir": "/^mkdir(at)?$",
}
FAULTS = {error: f"error={error}" for error in ("ENOSPC", "EIO", "EINTR", "ESTALE", "EROFS", "EDQUOT")}
FAULTS["SIGKILL"] = "signal=SIGKILL"


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        injected: Whether the fault happened at all: the job may make fewer calls.
        code: Exit code; negative: the signal that ended it.
        said: What it printed.
    """

    injected: bool
    code: int
    said: str


def run(job: Job, folder: Path, call: str = "", number: int = 1, fault: str = "") -> Outcome:
    """Lets a job write into a folder in a forked process, with a fault in its `number`-th `call`."""
    with tempfile.TemporaryDirectory() as place:
        said, log = Path(place) / "said", Path(place) / "strace"
        pid = os.fork()
        if pid == 0:
            _write(job, folder, said, stopped=bool(fault))
        with _injected(pid, log, STRACE.get(call, call), number, fault) if fault else contextlib.nullcontext():
            _, status = os.waitpid(pid, 0)
        happened = bool(fault) and ("INJECTED" in log.read_text() or os.WIFSIGNALED(status))
        return Outcome(happened, os.waitstatus_to_exitcode(status), said.read_text() if said.exists() else "")


def _write(job: Job, folder: Path, said: Path, stopped: bool) -> None:
    """The forked process; does not return."""
    code = 1
    try:
        sys.stdout = sys.stderr = said.open("a", buffering=1)
        if stopped:  # until strace is there
            os.kill(os.getpid(), signal.SIGSTOP)
        code = cli_errors.run(lambda: job.write(folder))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@contextlib.contextmanager
def _injected(pid: int, log: Path, calls: str, number: int, fault: str) -> Iterator[None]:
    """Attaches strace to a stopped process, lets it go on, and waits for strace at the end."""
    os.waitpid(pid, os.WUNTRACED)
    inject = f"inject={calls}:{FAULTS[fault]}:when={number}"
    command = ["strace", "-qq", "-o", str(log), "-e", f"trace={calls}", "-e", inject, "-p", str(pid)]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        if tracer.poll() is not None:
            os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"strace cannot attach: {tracer.communicate()[1]}")
        time.sleep(0.002)
    os.kill(pid, signal.SIGCONT)
    yield
    tracer.communicate(timeout=20)


@dataclass(frozen=True)
class States:
    """What a reader finds before and after a job, and all that the folder holds after it."""

    before: dict[str, str]
    after: dict[str, str]
    whole: dict[str, str]


def states(job: Job, folder: Path) -> States:
    """Prepares a job's folder, and finds the states."""
    folder.mkdir()
    job.prepare(folder)
    copy = folder.with_name("undisturbed")
    shutil.copytree(folder, copy)
    job.write(copy)
    return States(job.read(folder), job.read(copy), content(copy))


def problems(job: Job, folder: Path, known: States, outcome: Outcome) -> list[str]:
    """What is wrong after a fault, if anything."""
    found = []
    seen = job.read(folder)
    if outcome.code == 0 and seen != known.after:
        found.append("claims success")
    elif seen not in (known.before, known.after):
        other = [path for path, digest in seen.items() if digest not in (known.before.get(path), known.after.get(path))]
        found.append(f"neither old nor new: {', '.join(other)}" if other else "missing until the next start")
    if outcome.code > 0 and (outcome.code != cli_errors.EXIT_CODE or outcome.said.count("\n") != 1):
        found.append(f"traceback: {outcome.said.strip().splitlines()[-1]}")
    again = run(job, folder)
    if again.code != 0:
        found.append(f"cannot be started again: {again.said.strip().splitlines()[-1]}")
    elif content(folder) != known.whole:
        found.append("something is left behind")
    return found


def faults(
    job: Job, place: Path, calls: tuple[str, ...], kinds: tuple[str, ...]
) -> Iterator[tuple[str, str, int, Outcome, list[str]]]:
    """Tries each fault at each call of a job; yields call, fault, number of the call, outcome and problems."""
    start = place / "start"
    known = states(job, start)
    for call in calls:
        for fault in kinds:
            for number in range(1, 1000):
                folder = place / "tried"
                shutil.copytree(start, folder)
                outcome = run(job, folder, call, number, fault)
                if outcome.injected:
                    yield call, fault, number, outcome, problems(job, folder, known, outcome)
                shutil.rmtree(folder)
                if not outcome.injected:
                    break


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--jobs", nargs="*", help="of these alone")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    report = {}
    for name, job in jobs().items():
        if options.jobs and name not in options.jobs:
            continue
        tried: Counter[str] = Counter()
        wrong = []
        with tempfile.TemporaryDirectory() as place:
            for call, fault, number, outcome, found in faults(job, Path(place), CALLS, tuple(FAULTS)):
                tried[f"{call} {fault}"] += 1
                ended = "killed" if outcome.code < 0 else "went on" if outcome.code == 0 else "one line"
                tried[ended] += 1
                wrong += [{"call": call, "fault": fault, "number": number, "problem": one} for one in found]
        ends = {key: tried.pop(key, 0) for key in ("killed", "went on", "one line")}
        report[name] = {"faults": sum(tried.values()), **ends, "by_call_and_fault": dict(tried), "problems": wrong}
        print(name, report[name]["faults"], ends, len(wrong), *wrong[:40], sep="\n  ", flush=True)
    text = json.dumps({"what": __doc__.partition("\n")[0], "jobs": report, **record()}, indent=1, ensure_ascii=False)
    options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
