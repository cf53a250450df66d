"""The faults of benchmarks/reliability/machines.py."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from benchmarks.reliability.machines import Trial

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
DISK = "size=24m"  # room for a few checkpoints of 3.5 MB
SHORT = 8  # seconds of hang_timeout


@dataclass
class Fault:
    """One fault, and how the run is set up for it.

    Attributes:
        strike: brings it about, in a trial whose run waits.
        heal: undoes it before the resume.
        hang_timeout: of the run, seconds.
        limit: seconds after which a launcher counts as hanging: more than torchrun's exit barrier.
        torchrun: more of the launchers' options.
        cable: see `NamespaceMachine`.
        clock: what libfaketime adds to the second machine's, seconds.
        own_folders: each machine has a file system of its own where the output is.
        disk: the output is on a small file system.
    """

    strike: Callable[[Trial], None] = lambda trial: None
    heal: Callable[[Trial], None] = lambda trial: None
    hang_timeout: float = 300
    limit: float = 330
    torchrun: tuple[str, ...] = ()
    cable: tuple[float, float, int] | None = None
    clock: int = 0
    own_folders: bool = False
    disk: bool = False


def faults(seed: int) -> dict[str, Fault]:
    """All of them, by name."""
    return {
        "a worker killed": Fault(kill_worker),
        "a worker killed, --max-restarts 1": Fault(kill_worker, torchrun=("--max-restarts", "1")),
        "a launcher killed": Fault(kill_launcher),
        "a launcher told to stop (SIGTERM)": Fault(stop_launcher),
        "link down for 5 s": Fault(link_down(5)),
        "link down for 60 s, hang_timeout 8": Fault(link_down(60), link_up, hang_timeout=SHORT),
        "link down for 60 s, hang_timeout 300": Fault(link_down(60)),
        "link down for 600 s, hang_timeout 60": Fault(link_down(600), link_up, hang_timeout=60, limit=930),
        "1 % of packets lost": Fault(cable=(0.01, 0.0, seed)),
        "packets 100 ms late": Fault(cable=(0.0, 0.1, seed)),
        "disk full": Fault(fill_disk, empty_disk, disk=True),
        "disk read-only on the machine of process 0": Fault(read_only(0), writable(0)),
        "disk read-only on the other machine": Fault(read_only(1), writable(1)),
        "clocks an hour apart": Fault(clock=3600),
        "the machine with the rendezvous restarted": Fault(restart(0), hang_timeout=SHORT),
        "the other machine restarted": Fault(restart(1), hang_timeout=SHORT),
        "a worker killed, folders of their own": Fault(kill_worker, refuse_and_copy, own_folders=True),
    }


def prepare(trial: Trial) -> None:
    """Mounts what the fault needs."""
    place = str(trial.output.parent)
    if trial.fault.own_folders:
        for machine in trial.pair:
            machine.call("mount", "-t", "tmpfs", "-o", DISK, "none", place)
    if trial.fault.disk:  # on this computer and on the machines, which have copies of its mounts
        for enter in ([], *(machine.enter() for machine in trial.pair)):
            if not enter:
                image = trial.folder / "disk"
                subprocess.run(["truncate", "-s", "24M", image], check=True)
                subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
                subprocess.run(["mount", "-o", "loop", image, place], check=True)
            else:
                device = next(part.device for part in psutil.disk_partitions(all=True) if part.mountpoint == place)
                subprocess.run([*enter, "mount", device, place], check=True)


def tidy(trial: Trial) -> None:
    """Unmounts it on this computer."""
    if trial.fault.disk:
        subprocess.run(["umount", "--lazy", str(trial.output.parent)], check=False)


def kill_worker(trial: Trial) -> None:
    trial.jobs[1].workers()[0].kill()


def kill_launcher(trial: Trial) -> None:
    trial.jobs[1].launcher().kill()


def stop_launcher(trial: Trial) -> None:
    trial.jobs[1].launcher().send_signal(signal.SIGTERM)


def link_down(seconds: float):
    """Takes it down, and up again later."""

    def strike(trial: Trial) -> None:
        machine = trial.pair[1]
        machine.link(up=False)

        def later() -> None:
            time.sleep(seconds)
            with contextlib.suppress(subprocess.CalledProcessError):  # the machine is gone
                machine.link(up=True)

        threading.Thread(target=later, daemon=True).start()

    return strike


def link_up(trial: Trial) -> None:
    trial.pair[1].link(up=True)


def fill_disk(trial: Trial) -> None:
    with contextlib.suppress(OSError), (trial.output.parent / "filler").open("wb", buffering=0) as file:
        while file.write(b"\0" * 65536):
            pass


def empty_disk(trial: Trial) -> None:
    (trial.output.parent / "filler").unlink()


def read_only(number: int):
    """A mount of its own, since that of a file that is open for writing (run.lock) cannot become read-only."""

    def strike(trial: Trial) -> None:
        place = str(trial.output / "checkpoints")
        time.sleep(1)  # older checkpoints are being removed there, and nothing may be open for writing
        trial.pair[number].call("mount", "--bind", "-o", "ro", place, place)

    return strike


def writable(number: int):
    return lambda trial: trial.pair[number].call("umount", str(trial.output / "checkpoints"))


def refuse_and_copy(trial: Trial) -> None:
    """A resume, which is refused; then the other machine gets a copy of the folder."""
    trial.jobs = []
    trial.start(wait=False)
    for job in trial.jobs:
        job.wait(200)
    trial.refused = [job.lines[:2] for job in trial.jobs]
    there = Path(f"/proc/{trial.pair[1].pid}/root{trial.output}")
    shutil.copytree(trial.seen, there, dirs_exist_ok=True)


def restart(number: int):
    """Power off and on; nothing is started there by itself."""

    def strike(trial: Trial) -> None:
        trial.pair[number] = trial.pair[number].restarted()

    return strike
