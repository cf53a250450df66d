"""What a run will need, from two of its steps."""

import contextlib
import resource
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from timm_wsms.data import Loader, Stream
from timm_wsms.training.epoch import EpochProgress
from timm_wsms.training.fault_tolerance.step_sync import StepFlags
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings
from timm_wsms.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

STEPS = 2  # the first one compiles, starts workers and allocates; the second tells the speed


@dataclass(frozen=True)
class Estimate:
    """What a run will need.

    Attributes:
        memory: peak of the process that needs most, in bytes: of its GPU, or of the process itself on a CPU.
        seconds: for all steps and evaluations.
        step: seconds of one optimizer step.
        since_start: `memory` is the process's since its start, an earlier network's included, as on a CPU.
        streamed: images come from a stream, whose shuffle buffer is filled before an epoch's first step.
    """

    memory: int
    seconds: float
    step: float
    since_start: bool
    streamed: bool

    def __str__(self) -> str:
        return (
            f"peak memory {self.memory / 2**30:.2f} GiB a process{' since its start' * self.since_start}; "
            f"about {self.seconds / 3600:.2g} hours at {self.step:.3g} seconds a step, from a single one"
            f"{', not counting the time to fill the shuffle buffer in each epoch' * self.streamed}"
        )


class _Enough(Exception):  # noqa: N818  it is no error
    """The steps are done."""


def dry_run(
    trainer: Trainer,
    train_loader: Loader,
    test_loader: Loader,
    schedule: Schedule,
    settings: Settings,
    accelerator: "Accelerator",
) -> Estimate:
    """Trains for two steps, as in the last epoch, when nothing is frozen any more, and evaluates one batch.

    The network is another one afterwards. Every process has to call it.
    """
    times: list[float] = []
    updates = len(train_loader) // settings.grad_accumulation

    def after_update(so_far: EpochProgress, _: StepFlags) -> None:
        times.append(so_far.seconds)
        if so_far.update >= min(STEPS, updates):
            raise _Enough

    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)  # an earlier network's is none of this one's
    with contextlib.suppress(_Enough):
        trainer.train_epoch(train_loader, schedule, epoch=settings.epochs, after_update=after_update)
    step = times[-1] - (times[-2] if len(times) > 1 else 0.0)
    evaluation = _evaluation_batch(trainer, test_loader, accelerator)
    evaluations = -(-settings.epochs // settings.eval_every) * (1 if trainer.ema is None else 2)
    seconds = settings.epochs * updates * step + evaluations * len(test_loader) * evaluation
    needs = torch.tensor([_peak_memory(accelerator.device), seconds, step], dtype=torch.float64)
    memory, seconds, step = accelerator.gather(needs[None].to(accelerator.device)).amax(0).tolist()
    since_start, streamed = accelerator.device.type != "cuda", isinstance(train_loader.split, Stream)
    return Estimate(int(memory), seconds, step, since_start, streamed)


def _evaluation_batch(trainer: Trainer, loader: Loader, accelerator: "Accelerator") -> float:
    """Evaluates one batch; returns the seconds that took."""
    batch = next(iter(loader), None)
    if batch is None:  # more processes than images
        return 0.0
    _, images, _ = batch
    started = time.perf_counter()
    trainer.final.eval()
    with torch.no_grad(), accelerator.autocast():
        trainer.final(images.to(accelerator.device)).sum().item()  # waits for the device
    return time.perf_counter() - started


def _peak_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
