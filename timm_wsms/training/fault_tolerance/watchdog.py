"""Ends a run that hangs, and says in which process."""

import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

EXIT_CODE = 75


class Watchdog:
    """Context that watches the process; ends it after `timeout` seconds without progress.

    Time during which the process was suspended (SIGSTOP, `scontrol suspend`) counts for the others, but not for itself.

    All processes do the same things in the same order, so of those that wait for each other, the one that has done the
    fewest is to blame. They exchange this through the store they met in. A launcher then ends the other processes, and
    torchrun with `--max-restarts` restarts all of them.

    Args:
        accelerator: knows the processes.
        timeout: seconds.
        store: where the processes exchange their progress; None: the one they met in.
        names: names of the processes, from `process_names`; None: their numbers.
    """

    def __init__(
        self, accelerator: "Accelerator", timeout: float, store: Any = None, names: Sequence[str] | None = None
    ):
        self.timeout, self._interval = timeout, min(10.0, timeout / 4)
        self._rank, self._processes = accelerator.process_index, accelerator.num_processes
        self._done, self._doing, self._since = 0, "", time.monotonic()
        self._left = threading.Event()
        self._store = store
        self._names = names or [f"process {rank}" for rank in range(self._processes)]
        if self._processes > 1 and store is None:
            # A connection of its own, since the process group's is blocked while a process waits. Private, since
            # torch has no public way to the store that `init_process_group` made, and another store needs another port.
            self._store = torch.distributed.distributed_c10d._get_default_store().clone()

    def note(self, doing: str) -> None:
        """Notes what the process does next. Nothing ("") stands for anything that may take long."""
        self._done, self._doing, self._since = self._done + 1, doing, time.monotonic()

    def __enter__(self) -> "Watchdog":
        self._left = threading.Event()
        for work in (self._run, self._tell_regularly):
            threading.Thread(target=work, args=(self._left,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._doing = ""

    def _run(self, left: threading.Event) -> None:
        last = time.monotonic()
        while not left.wait(self._interval):
            now = time.monotonic()
            if now - last > 2 * self._interval:  # the process was suspended, or its machine
                self._since += now - last
            last = now
            if self._doing and time.monotonic() - self._since > self.timeout:
                told = self._agreed_in_time()
                if not left.is_set():
                    if told:  # in one write: others write to the same place at the same time
                        sys.stderr.write(f"\nerror: no progress for {self.timeout:g} seconds: {told}\n")
                        sys.stderr.flush()
                    for worker in multiprocessing.active_children():  # one that hangs would stay forever
                        worker.kill()
                    os._exit(EXIT_CODE)

    def _tell_regularly(self, left: threading.Event) -> None:
        """In a thread of its own: where the network is down, a call to the store may block for many minutes."""
        beat = 0
        while not left.wait(self._interval):
            beat += 1
            self._tell(beat)

    def _tell(self, beat: int) -> None:
        if self._store is not None:
            # If the process that holds the store is stuck or gone, `_agreed` will find out.
            with contextlib.suppress(RuntimeError):
                self._store.set(f"watch/{self._rank}", json.dumps([self._done, beat, self._doing]))

    def _agreed_in_time(self) -> str:
        """What `_agreed` says, or that the store does not answer; works even if its machine cannot be reached."""
        told: list[str] = []
        asking = threading.Thread(target=lambda: told.append(self._agreed()), daemon=True)
        asking.start()
        asking.join(4 * self._interval)  # `_culprits` takes one and a half
        return told[0] if told else self._silent_store()

    def _silent_store(self) -> str:
        where = f", on {os.environ.get('MASTER_ADDR')}" if " on " in self._names[0] else ""
        return f"the process that holds the store (the launcher or process 0{where}) does not answer"

    def _agreed(self) -> str:
        """The verdict of the first process to reach one. Once that has exited, the others would find it silent.

        Empty if the process that holds the store has ended: it has said why, or the launcher does.
        """
        if self._store is None:
            return self._doing
        try:
            return self._store.compare_set("watch/told", "", self._culprits()).decode()
        except torch.distributed.DistNetworkError:
            return ""
        except RuntimeError:
            return self._silent_store()

    def _culprits(self) -> str:
        """Names the processes that are behind, or that do not answer."""
        before = self._read()
        for beat in range(-3, 0):  # meanwhile, the others should hear from this one
            self._tell(beat)
            time.sleep(self._interval / 2)
        now = self._read()
        if not now:  # not even this process's own progress has arrived
            return self._silent_store()
        # One that stopped within the first interval has never been heard of.
        silent = [rank for rank in range(self._processes) if now.get(rank) == before.get(rank) and rank != self._rank]
        least = min(done for done, _, _ in now.values())
        behind = silent or [rank for rank, (done, _, _) in now.items() if done == least]
        state = "does not answer" if silent else "is behind"
        last = {rank: f", last {doing}" for rank, (_, _, doing) in now.items() if doing}
        return "; ".join(f"{self._names[rank]} {state}{last.get(rank, '')}" for rank in behind)

    def _read(self) -> dict[int, list[Any]]:
        keys = {rank: f"watch/{rank}" for rank in range(self._processes)}
        return {rank: json.loads(self._store.get(key)) for rank, key in keys.items() if self._store.check([key])}
