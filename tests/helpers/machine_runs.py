"""Runs under torchrun on machines (tests/helpers/machines.py), each with a launcher of its own."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.helpers.fault_runs import DRIVER, wait_for
from tests.helpers.machines import Machine
from tests.helpers.paths import ROOT

SETTINGS = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
HERE = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]


class Launchers:
    """Starts launchers without the time for importing; a context manager.

    Args:
        environment: of all of them, in addition.
    """

    def __init__(self, **environment: str):
        self._environment = {**os.environ, **SETTINGS, **environment}

    def __enter__(self) -> "Launchers":
        self._driver = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.machine_driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self._environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._driver.kill()  # its runs have ended, or have been
        self._driver.communicate()

    def start(self, machine: Machine | None, log: Path, options: list[str], *arguments: str, fault: str = "") -> "Job":
        """Starts torchrun.

        Args:
            machine: on which; None: on this computer itself.
            log: file for what is printed; what an earlier launcher has printed goes.
            options: torchrun's.
            arguments: the training script's.
            fault: see tests/helpers/fault_driver.py.
        """
        assert self._driver.stdin and self._driver.stdout
        for old in (log, Job.code_of(log)):
            old.unlink(missing_ok=True)
        order = {
            "arguments": [*options, str(DRIVER), *arguments],
            "pid": machine and machine.pid,
            "log": str(log),
            "environment": {"FAULT": fault},
        }
        self._driver.stdin.write(json.dumps(order) + "\n")
        self._driver.stdin.flush()
        return Job(int(self._driver.stdout.readline()), log)


class Job:
    """A launcher that runs on a machine, or ran.

    Args:
        pid: of the process that waits for it.
        log: file for what it prints.
    """

    def __init__(self, pid: int, log: Path):
        self.pid, self._log = pid, log

    @staticmethod
    def code_of(log: Path) -> Path:
        """The file that tells how a launcher ended."""
        return log.with_name(f"{log.name}.code")

    @property
    def text(self) -> str:
        """What was printed so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def code(self) -> int | None:
        """The exit code; None: it runs."""
        file = self.code_of(self._log)
        return int(file.read_text().split()[0]) if file.exists() else None

    @property
    def lines(self) -> list[str]:
        """The error lines."""
        return re.findall(r"^error.*", self.text, re.MULTILINE)

    def wait(self, seconds: float = 120) -> int:
        """Waits for its end.

        Raises:
            TimeoutError: it has not ended; says what it printed.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (code := self.code) is not None:
                return code
            time.sleep(0.05)
        raise TimeoutError(f"it has not ended within {seconds:g} seconds: {self.text}")

    def launcher(self) -> psutil.Process:
        """torchrun itself."""
        return psutil.Process(self.pid).children()[0]

    def workers(self) -> list[psutil.Process]:
        """The processes that train, by rank."""
        return sorted(self.launcher().children(), key=lambda child: child.pid)

    def end(self) -> None:
        """Kills it and all that it has started."""
        with contextlib.suppress(psutil.Error, IndexError):
            launcher = self.launcher()
            for process in [*launcher.children(recursive=True), launcher]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        wait_for(lambda: self.code is not None, 20)


def newest(output: Path) -> str:
    """The name of a run's newest checkpoint; empty if there is none."""
    return max((path.name for path in (output / "checkpoints").glob("epoch-*")), default="")
