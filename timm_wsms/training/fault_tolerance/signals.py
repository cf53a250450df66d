"""Signals that ask a run to stop: it finishes its step, saves, and leaves. docs/training.md says who sends which."""

import os
import select
import signal
import sys
import threading
import time
from types import TracebackType
from typing import Any

from timm_wsms.cli_errors import under_launcher

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # Slurm is asked to warn with the last
# A signal to the whole process group arrives twice, once from the launcher: this soon after, it counts as the same one.
GRACE = 3.0  # seconds
LAUNCHER_ENDED = "the end of its launcher"


class ShutdownSignal:
    """Context that notes when the process is asked to stop; a second signal ends the process at once.

    Python calls signal handlers only between two of its own instructions. A process that waits for others in the middle
    of a collective operation would never get there, so a thread reads what the interpreter's C handler writes to a
    pipe. Under a launcher, the launcher's death counts as a signal, so that no process is left behind.

    Attributes:
        reason: the signal's name, or what else asked; None so far.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._entered = False

    def __enter__(self) -> "ShutdownSignal":
        if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
            return self
        self._entered = True
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._handlers: dict[int, Any] = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, args=(os.getppid(),), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._entered:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _watch(self, parent: int) -> None:
        first = None  # time of the first signal
        while True:
            readable, _, _ = select.select([self._read], [], [], 1.0)
            number = os.read(self._read, 1)[0] if readable else None
            if number == 0:
                return
            if number in SIGNALS:
                if first is None:
                    first = time.monotonic()
                    self.reason = signal.Signals(number).name
                    print(f"\n{self.reason}: finishing the step and saving; send it again to exit now", file=sys.stderr)
                elif time.monotonic() - first > GRACE:
                    os._exit(128 + number)
            elif under_launcher() and os.getppid() != parent and self.reason is None:
                self.reason = LAUNCHER_ENDED
