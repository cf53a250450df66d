"""What the processes of a run agree on after every step: was it sound, is it time to save, are they to stop."""

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from timm_wsms.accelerator import PATIENCE
from timm_wsms.training.fault_tolerance.signals import ShutdownSignal
from timm_wsms.training.fault_tolerance.watchdog import Watchdog

if TYPE_CHECKING:
    from accelerate import Accelerator


class StepFlags(NamedTuple):
    """The same in every process.

    Attributes:
        bad: a loss or gradient is not finite.
        stop: one of them was asked to stop.
        save: process 0 finds it time to save.
    """

    bad: bool
    stop: bool
    save: bool


class StepSync:
    """Lets all processes decide in the same way, by one exchange of three bytes per step.

    They go over gloo, also beside NCCL: nothing has to wait for a GPU's queue. Every process has to create it, and
    to call `exchange` equally often.

    Args:
        accelerator: knows the processes.
        stop: whether this process was asked to stop.
        save_minutes: time between two saves; None for no limit.
        watchdog: gets notes of what this process is doing.
    """

    def __init__(
        self,
        accelerator: "Accelerator",
        stop: ShutdownSignal | None = None,
        save_minutes: float | None = None,
        watchdog: Watchdog | None = None,
    ):
        self._stop, self._save_minutes = stop or ShutdownSignal(), save_minutes
        self._first = accelerator.is_main_process
        self._group: Any = None
        if accelerator.num_processes > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        self._saved = time.monotonic()
        self._watch = watchdog

    def note(self, doing: str) -> None:
        """Tells the watchdog what this process turns to."""
        if self._watch is not None:
            self._watch.note(doing)

    def exchange(self, bad: bool) -> StepFlags:
        """Tells the others about this process, and returns what is true of any of them."""
        minutes = (time.monotonic() - self._saved) / 60
        due = self._first and self._save_minutes is not None and minutes >= self._save_minutes
        flags = torch.tensor([bad, self._stop.reason is not None, due], dtype=torch.uint8)
        if self._group is not None:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group=self._group)
        agreed = StepFlags(*map(bool, flags.tolist()))
        if agreed.save:
            self._saved = time.monotonic()
        return agreed

    @property
    def reason(self) -> str:
        """What this process was asked to stop by, if it was itself."""
        return self._stop.reason or "a signal to another process"
