"""The faults of the soak: what strikes the job, how its life has to end, and what it has to say."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.reliability.soak_job import Job
from timm_wsms.training import checkpoint

DISK_FULL = r"error: the disk is full while writing .*--resume auto"


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        strike: lets it happen, and repairs what was broken once the job has ended.
        codes: how the job may end; empty: it has to go on.
        says: a pattern of what it has to print; "": nothing.
        order: what the driver does itself, see `tests/helpers/fault_driver.py`; "": it happens from outside.
    """

    strike: Callable[[Job, random.Random], None]
    codes: tuple[int, ...]
    says: str = ""
    order: str = ""


def send(number: signal.Signals) -> Callable[[Job, random.Random], None]:
    """To the process alone; its workers find out by themselves."""

    def strike(job: Job, _: random.Random) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(job.pid, number)
        job.wait()

    return strike


def kill_group(job: Job, _: random.Random) -> None:
    job.end()


def kill_while_saving(job: Job, draw: random.Random) -> None:
    job.wait_for_a_save(time.time())
    time.sleep(draw.uniform(0, 0.03))
    job.end()


def suspend(job: Job, draw: random.Random) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(job.pid, signal.SIGSTOP)
        time.sleep(draw.uniform(1, 5))
        os.kill(job.pid, signal.SIGCONT)


def fill_disk(job: Job, _: random.Random) -> None:
    """Leaves no byte free, so that the next file that is written does not fit."""
    ballast = job.disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    try:
        job.wait()
    finally:
        ballast.unlink()


def limit_file_size(job: Job, _: random.Random) -> None:
    """As a quota does, files cannot grow any more."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(job.pid).rlimit(psutil.RLIMIT_FSIZE, (300_000, 300_000))
    job.wait()


def damage(way: Callable[[Path, random.Random], None]) -> Callable[[Job, random.Random], None]:
    """After a kill, one file of the newest of two checkpoints."""

    def strike(job: Job, draw: random.Random) -> None:
        job.end()
        whole = checkpoint.all_of(job.output)
        if len(whole) > 1:  # as from the second save on; of a single one nothing would be left to go on from
            way(draw.choice(sorted(whole[-1].iterdir())), draw)

    return strike


def _half(path: Path, _: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _delete(path: Path, _: random.Random) -> None:
    path.unlink()


def worker(number: signal.Signals) -> Callable[[Job, random.Random], None]:
    """To a process that loads images."""

    def strike(job: Job, _: random.Random) -> None:
        while job.code is None:  # there are workers during an epoch's steps only
            if workers := job.workers():
                with contextlib.suppress(psutil.NoSuchProcess):
                    workers[0].send_signal(number)
                    break
        job.wait()

    return strike


def hide_images(job: Job, _: random.Random) -> None:
    """As when the disk with the data goes away for a while."""
    away = job.images.with_name("away")
    job.images.rename(away)
    try:
        job.wait()
    finally:
        away.rename(job.images)


def inject(call: str, what: str) -> Callable[[Job, random.Random], None]:
    """Lets one of the next calls of a kind fail, by strace."""

    def strike(job: Job, draw: random.Random) -> None:
        with _strace(job.pid, call, f"{what}:when={draw.randint(1, 4)}"):
            job.wait()

    return strike


@contextlib.contextmanager
def _strace(pid: int, calls: str, what: str) -> Iterator[None]:
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={calls}", "-e", f"inject={calls}:{what}"]
    process = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _nothing(job: Job, _: random.Random) -> None:
    job.wait()


RENAME, UNLINK = "rename,renameat,renameat2", "unlink,unlinkat,rmdir"
KINDS = {
    "SIGKILL": Fault(send(signal.SIGKILL), (-9,)),
    "SIGKILL to the process group": Fault(kill_group, (-9,)),
    "SIGKILL while a checkpoint is written": Fault(kill_while_saving, (-9,)),
    "SIGTERM": Fault(send(signal.SIGTERM), (0,), "stopped by SIGTERM and saved"),
    "SIGUSR1": Fault(send(signal.SIGUSR1), (0,), "stopped by SIGUSR1 and saved"),
    "SIGINT": Fault(send(signal.SIGINT), (0,), "stopped by SIGINT and saved"),
    "SIGSTOP, SIGCONT after 1 to 5 s": Fault(suspend, ()),
    "disk full": Fault(fill_disk, (2,), DISK_FULL),
    "files cannot grow": Fault(limit_file_size, (2,), DISK_FULL),
    "newest checkpoint: a file cut off at half": Fault(damage(_half), (-9,)),
    "newest checkpoint: one bit flipped": Fault(damage(_flip), (-9,)),
    "newest checkpoint: a file deleted": Fault(damage(_delete), (-9,)),
    "SIGKILL to a loader worker": Fault(worker(signal.SIGKILL), (2,), "error: a process that loads images has died"),
    "loader worker hangs": Fault(worker(signal.SIGSTOP), (75,), "error: no progress for .* loading images"),
    "images unreadable": Fault(hide_images, (2,), r"error: .*images"),
    "EIO at an fsync": Fault(inject("fsync", "error=EIO"), (2,), r"error: .*Input/output error.*--resume auto"),
    "SIGKILL at a rename": Fault(inject(RENAME, "signal=SIGKILL"), (-9,)),
    "SIGKILL at an unlink": Fault(inject(UNLINK, "signal=SIGKILL"), (-9,)),
    "loss not finite": Fault(_nothing, (2,), r"error: the loss is nan in epoch", order="nan"),
}


def complaint(fault: Fault, job: Job) -> str:
    """What is wrong with how a life ended; "": nothing."""
    text = job.text()
    if job.code not in fault.codes:
        return f"it ended with {job.code}"
    if job.code >= 0 and ("Traceback" in text or text.count("error: ") > 1):
        return "more than a line"  # of a killed run a worker may print that its connection broke: Python's own words
    if fault.says and not re.search(fault.says, text):
        return f"it did not say {fault.says!r}"
    return ""


def left_overs(job: Job) -> list[str]:
    """What an ended run should not leave: half-written or half-removed files, and shared memory of its lives."""
    hidden = [path for path in job.output.rglob(".*") if path.suffix in (".new", ".gone", ".old")]
    shared = [path.name for path in Path("/dev/shm").iterdir() if set(re.findall(r"\d+", path.name)) & job.pids]
    return [str(path.relative_to(job.output)) for path in hidden] + shared


def tools_missing() -> list[str]:
    """Programs that the faults need and that are not there."""
    return [name for name in ("strace", "mount") if shutil.which(name) is None]
