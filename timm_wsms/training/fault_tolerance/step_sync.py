"""What the processes of a run agree on after every step: was it sound, is it time to save, must they stop."""

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from timm_wsms.accelerator import PATIENCE
from timm_wsms.cli_errors import this_machine
from timm_wsms.training.fault_tolerance.signals import LAUNCHER_ENDED, ShutdownSignal
from timm_wsms.training.fault_tolerance.watchdog import Watchdog

if TYPE_CHECKING:
    from accelerate import Accelerator


class StepFlags(NamedTuple):
    """The same in every process.

    Attributes:
        bad: a loss or gradient is not finite.
        stop: one of them was asked to stop.
        save: process 0 says that it is time to save.
        orphaned: the launcher of one of them has ended, and there are several launchers.
    """

    bad: bool
    stop: bool
    save: bool
    orphaned: bool = False


class StepSync:
    """Lets all processes make the same decision, with one exchange of three bytes per step.

    They go over gloo, even alongside NCCL: nothing has to wait for a GPU's queue. Every process has to create it, and
    call `exchange` equally often.

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
        self._name = f"process {accelerator.process_index}{this_machine()}"
        self._group: Any = None
        if accelerator.num_processes > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        self._saved = time.monotonic()
        self._watch = watchdog

    def note(self, doing: str) -> None:
        """Tells the watchdog what this process does next."""
        if self._watch is not None:
            self._watch.note(doing)

    def exchange(self, bad: bool) -> StepFlags:
        """Tells the others about this process, and returns what is true of any of them."""
        minutes = (time.monotonic() - self._saved) / 60
        due = self._first and self._save_minutes is not None and minutes >= self._save_minutes
        flags = torch.tensor([bad, bool(self._stop.reason) + bool(self._orphaned_on), due], dtype=torch.uint8)
        if self._group is not None:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group=self._group)
        worst_bad, worst_stop, any_save = flags.tolist()
        agreed = StepFlags(bool(worst_bad), worst_stop > 0, bool(any_save), orphaned=worst_stop > 1)
        if agreed.save:
            self._saved = time.monotonic()
        return agreed

    @property
    def _orphaned_on(self) -> str:
        """` on <machine>` if this process's launcher has ended and there are others; else nothing."""
        return this_machine() if self._stop.reason == LAUNCHER_ENDED else ""

    def orphans(self) -> str:
        """Names the machines whose launchers have ended. Every process has to call it."""
        from accelerate.utils import gather_object

        return " and".join(sorted({machine for machine in gather_object([self._orphaned_on]) if machine}))

    def reason(self) -> str:
        """What asked the run to stop, and which process if it was not this one. Every process has to call it."""
        from accelerate.utils import gather_object

        told = gather_object([f"{self._stop.reason} ({self._name})" if self._stop.reason else ""])
        return self._stop.reason or next(filter(None, told))
