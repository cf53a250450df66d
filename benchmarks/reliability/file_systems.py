"""File systems that refuse in the midst of a write, or have rules of their own: what is there afterward?

    python -m benchmarks.reliability.file_systems [--only NAME ...]      # needs root and Linux

Each job of write_jobs.py writes to a file system that is made for it: a FAT image (names without case), NFS that has
withdrawn its export (stale handles), ext4 with a user's quota, ext4 and a tmpfs that have no room left or room for half
of it. The checks are those of write_faults.py:
the old or the new content is there, byte for byte; an error is one line; once the fault is gone, the job ends with the
new content and leaves no temporary file. `benchmarks/reliability/user_mode_linux.sh` tries those that this kernel does
not have under one that has them. Results are kept by name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.environment import ROOT, record
from benchmarks.reliability.write_faults import Outcome, problems, run, states
from benchmarks.reliability.write_jobs import Job, jobs

OUT = ROOT / "benchmarks" / "results" / "reliability" / "file_systems.json"
SIZE = "12M"
NOBODY = 65534  # root has no quota


class MissingError(Exception):
    """A file system cannot be tried on this computer."""


def call(*command: object) -> None:
    """Runs a command.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run([*map(str, command)], check=True, capture_output=True, text=True, timeout=60)


def needs(name: str) -> None:
    """Checks that the kernel has a file system.

    Raises:
        MissingError: it has not.
    """
    if name not in Path("/proc/filesystems").read_text().split():
        raise MissingError(f"the kernel has no {name}")


@contextlib.contextmanager
def image(place: Path, make: list[str], *options: str) -> Iterator[None]:
    """Mounts a file system that is made in a file."""
    file = place.with_suffix(".img")
    call("truncate", "-s", SIZE, file)
    call(*make, file)
    call("mount", "-o", ",".join(["loop", *options]), file, place)
    try:
        yield
    finally:
        call("umount", place)


@contextlib.contextmanager
def memory(place: Path) -> Iterator[None]:
    call("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", place)
    try:
        yield
    finally:
        call("umount", place)


def ext4(place: Path) -> contextlib.AbstractContextManager[None]:
    return image(place, ["mkfs.ext4", "-q", "-O", "^has_journal"])


def fat(place: Path) -> contextlib.AbstractContextManager[None]:
    needs("vfat")
    return image(place, ["mkfs.vfat"])


@contextlib.contextmanager
def with_quota(place: Path) -> Iterator[None]:
    if not Path("/proc/sys/fs/quota").exists() or not Path("/sys/module/quota_v2").exists():
        raise MissingError("the kernel has no quota on ext4 (quota_v2)")
    with image(place, ["mkfs.ext4", "-q", "-O", "^has_journal,quota", "-E", "quotatype=usrquota"], "usrquota"):
        os.chown(place, NOBODY, NOBODY)
        yield


@contextlib.contextmanager
def nfs(place: Path) -> Iterator[None]:
    """An export of this computer's, mounted by itself."""
    needs("nfsd")
    served = place.with_name("served")
    served.mkdir()
    with memory(served):
        export(served, 7)
        export(served.parent, 8)  # while a client has one export, the handles of another that is gone are stale
        try:
            call("mount", "-t", "nfs", "-o", "vers=3,nolock,soft,timeo=50,actimeo=0", f"127.0.0.1:{served}", place)
            try:
                yield
            finally:
                call("umount", "-f", place)
        finally:
            call("exportfs", "-ua")


def export(served: Path, number: int) -> None:
    call("exportfs", "-o", f"rw,no_root_squash,insecure,no_subtree_check,fsid={number}", f"*:{served}")


@contextlib.contextmanager
def full(place: Path, left: int) -> Iterator[None]:
    """Leaves room for `left` bytes."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    os.truncate(filler, max(0, filler.stat().st_size - left))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def exhausted(place: Path, left: int) -> Iterator[None]:
    """Lets a user's quota end `left` bytes above what is used."""
    used = sum(path.stat().st_blocks for path in place.rglob("*")) // 2
    call("setquota", "-u", NOBODY, 0, used + left // 1024 + 1, 0, 0, place)
    try:
        yield
    finally:
        call("setquota", "-u", NOBODY, 0, 0, 0, 0, place)


@contextlib.contextmanager
def stale(place: Path, left: int) -> Iterator[None]:
    """Withdraws the export."""
    served = place.with_name("served")
    call("exportfs", "-u", f"*:{served}")
    call("exportfs", "-f")
    try:
        yield
    finally:
        export(served, 7)


def undisturbed(place: Path, left: int) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Kind:
    """A file system and what happens to it.

    Attributes:
        mounted: makes and mounts it at a folder.
        fault: lasts while a job writes to it; gets the folder, and the share of the job's bytes that there is room for.
        room: that share.
        user: who writes.
    """

    mounted: Callable[[Path], contextlib.AbstractContextManager[None]]
    fault: Callable[[Path, int], contextlib.AbstractContextManager[None]] = undisturbed
    room: float = 0.0
    user: int = 0


KINDS = {
    "tmpfs, no room": Kind(memory, full),
    "tmpfs, room for half": Kind(memory, full, 0.5),
    "ext4, no room": Kind(ext4, full),
    "ext4, room for half": Kind(ext4, full, 0.5),
    "FAT": Kind(fat),
    "FAT, no room": Kind(fat, full),
    "FAT, room for half": Kind(fat, full, 0.5),
    "ext4, quota reached": Kind(with_quota, exhausted, user=NOBODY),
    "ext4, quota for half": Kind(with_quota, exhausted, 0.5, user=NOBODY),
    "NFS": Kind(nfs),
    "NFS, export withdrawn": Kind(nfs, stale),
}


def as_user(job: Job, user: int) -> Job:
    """The same, written by a user without root's rights."""

    def write(folder: Path) -> None:
        if os.getuid() != user:
            os.setresuid(user, user, user)
        job.write(folder)

    return replace(job, write=write) if user else job


def tried(kind: Kind, job: Job, folder: Path) -> tuple[Outcome, list[str]]:
    """How a job ends on a file system of a kind, and what is wrong afterward."""
    known = states(job, folder / "here")  # on the disk at hand
    place = folder / "place"
    place.mkdir()
    folder.chmod(0o755)  # other users may pass
    size = sum(path.stat().st_size for path in (folder / "undisturbed").rglob("*"))
    with kind.mounted(place):
        there = place / "folder"
        shutil.copytree(folder / "here", there, copy_function=shutil.copyfile)
        for path in [there, *there.rglob("*")]:
            if kind.user:
                os.chown(path, kind.user, kind.user)
        writer = as_user(job, kind.user)
        with kind.fault(place, int(kind.room * size)):
            outcome = run(writer, there)
        return outcome, problems(writer, there, known, outcome)


def row(outcome: Outcome, found: list[str], folder: Path) -> dict[str, Any]:
    """For the results."""
    said = outcome.said.replace(str(folder), "…").strip()
    return {"code": outcome.code, "said": said, "problems": found, "kernel": platform.release()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    report = {"what": " ".join(__doc__.split("\n\n")[0].split()), **record()}
    found = json.loads(options.out.read_text(encoding="utf-8"))["tried"] if options.out.exists() else {}
    for name in options.only:
        for what, job in jobs().items():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    ended = tried(KINDS[name], job, Path(folder))
                except MissingError as error:
                    print(f"{name} is not tried: {error}", flush=True)
                    break
                found.setdefault(name, {})[what] = row(*ended, Path(folder))
            print(name, what, found[name][what], flush=True)
            text = json.dumps({**report, "tried": found}, indent=1, ensure_ascii=False)
            options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
