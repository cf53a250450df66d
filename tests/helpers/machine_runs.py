"""Runs under torchrun on machines (tests/helpers/machines.py), each with a launcher of its own."""

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import psutil

from tests.helpers.fault_runs import DRIVER, Server, code_of, wait_for
from tests.helpers.machines import Machine

HERE = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
PAIR = [*HERE, "--nproc_per_node", "2"]


class Launchers(Server):
    """Starts torchrun too without the time for importing; a context manager."""

    def launch(
        self,
        machine: Machine | None,
        log: Path,
        options: list[str],
        *arguments: str,
        fault: str = "",
        script: Path = DRIVER,
    ) -> "Job":
        """Starts torchrun.

        Args:
            machine: on which; None: on this computer itself.
            log: file for what is printed; what an earlier launcher has printed goes.
            options: torchrun's.
            arguments: the script's.
            fault: see tests/helpers/fault_driver.py.
            script: what torchrun's processes run; the training script if nothing is said.
        """
        order = {
            "torchrun": [*options, str(script), *arguments],
            "pid": machine and machine.pid,
            "environment": {"FAULT": fault},
        }
        return Job(self.order(log, **order), log)

    def launched(self, log: Path, options: list[str], *arguments: str, **more: Any) -> tuple[int, str]:
        """Runs torchrun on this computer to its end; returns its exit code and all that was printed."""
        job = self.launch(None, log, options, *arguments, **more)
        try:
            return job.wait(), job.text
        finally:
            job.end()


class Job:
    """A launcher that runs on a machine, or ran.

    Args:
        pid: of the process that waits for it.
        log: file for what it prints.
    """

    def __init__(self, pid: int, log: Path):
        self.pid, self._log = pid, log

    @property
    def text(self) -> str:
        """What was printed so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def code(self) -> int | None:
        """The exit code; None: it runs."""
        file = code_of(self._log)
        return int(file.read_text().split()[0]) if file.exists() else None

    @property
    def lines(self) -> list[str]:
        """The lines that say why the run ended early."""
        return re.findall(r"^(?:error|stopped by).*", self.text, re.MULTILINE)

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

    def suspend(self) -> None:
        """Stops all that it has started and itself, so that nobody gets an answer."""
        for process in [*self.launcher().children(recursive=True), self.launcher()]:
            process.suspend()

    def resume(self) -> None:
        """Lets it go on."""
        for process in [self.launcher(), *self.launcher().children(recursive=True)]:
            process.resume()

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
