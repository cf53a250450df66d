"""The job of the soak: a run on a small disk of its own that is started again and again, and what is seen of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.helpers.fault_runs import EVERYTHING, Server, images, writing

IMAGES = 80  # of each of two classes, so 10 updates per epoch
DISK = 96  # MiB
PATIENCE = 300.0  # seconds without a step after which the job counts as lost
HANG = 20.0  # seconds after which the job itself has to give up


class Lost(Exception):  # noqa: N818
    """The job did not do what it should after a fault; the message says what."""


class Job:
    """A run that faults strike.

    Attributes:
        folder: holds the images, and `disk`, a file system of its own with the run and the temporary files.
        output: the run's folder.
        lives: how often it was started.
        pid: of the life that is now.
        pids: of all lives, as text.
    """

    def __init__(self, server: Server, folder: Path, epochs: int, seed: int):
        self.server, self.folder, self.lives, self.pid = server, folder, 0, 0
        self.pids: set[str] = set()
        self.disk = folder / "disk"
        self.output, self.images = self.disk / "run", folder / "images"
        self.arguments = arguments(self.images, epochs, seed)

    def start(self, fault: str = "") -> None:
        """Starts a life."""
        self.lives += 1
        self.log = self.folder / f"log-{self.lives}"
        self.started = time.monotonic()
        self.pid = self.server.start(self.log, *self.arguments, "--output", str(self.output), fault=fault)
        self.pids.add(str(self.pid))
        self.code: int | None = None
        self._waiting = threading.Thread(target=self._wait, daemon=True)
        self._waiting.start()

    def _wait(self) -> None:
        self.code = self.server.wait()

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code of this life; negative if a signal ended it.

        Raises:
            Lost: it does not end.
        """
        self._waiting.join(seconds)
        if self.code is None:
            self.end()
            raise Lost(f"it did not end within {seconds:g} s")
        return self.code

    def end(self) -> None:
        """Kills it, and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._waiting.join(60)

    def text(self) -> str:
        """What this life has printed."""
        return self.log.read_text()

    def steps(self) -> list[list[float]]:
        """What this life has logged at each update's beginning, see `tests/helpers/fault_driver.py`."""
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in Path(f"{self.log}.steps").read_text().splitlines()[:-1]]
        return []

    def update(self) -> int:
        """The update that this life has begun last; -1 before the first."""
        steps = self.steps()
        return int(steps[-1][0]) if steps else -1

    def reach(self, update: int) -> bool:
        """Waits until this life has begun an update; False if it has come to an end.

        Raises:
            Lost: no step in a long time.
        """
        seen, since = -1, time.monotonic()
        while self.code is None:
            now = self.update()
            if now >= update:
                return True
            if now > seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                self.end()
                raise Lost(f"no step within {PATIENCE:g} s after update {now}")
            time.sleep(0.05)
        return False

    def wait_for_a_save(self, since: float) -> None:
        """Waits until a checkpoint is being written, or the run has ended."""
        while self.code is None and not writing(self.output / "checkpoints", since):
            time.sleep(0.0005)

    def workers(self) -> list[psutil.Process]:
        """The processes that load images."""
        try:
            return psutil.Process(self.pid).children()
        except psutil.NoSuchProcess:
            return []


def arguments(folder: Path, epochs: int, seed: int) -> list[str]:
    """All that is random in a step, on images that a worker decodes and crops at random."""
    return [
        *(*EVERYTHING, "--model", "wsms_test_resnet", "--data.input_size", "[3, 32, 32]"),
        *("--data.source", str(folder), "--data.augmentation", "timm", "--data.workers", "1"),
        *("--data.train_limit", str(2 * IMAGES), "--epochs", str(epochs), "--seed", str(seed), "--resume", "auto"),
        *("--checkpoint_every_steps", "5", "--eval_every", "5", "--hang_timeout", str(HANG)),
    ]


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder with the images and a small disk, which has a folder for the jobs' temporary files.

    Raises:
        subprocess.CalledProcessError: nothing may be mounted here.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images(folder / "images", train=IMAGES)
        (folder / "disk").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", folder / "disk"], check=True)
        try:
            (folder / "disk" / "tmp").mkdir()
            yield folder
        finally:
            subprocess.run(["umount", "-l", folder / "disk"], check=True)
