"""What a run will need, estimated from two of its steps."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from timm_wsms.data import Stream
from timm_wsms.training.fault_tolerance.step_sync import StepSync
from timm_wsms.training.run_state import StepResult, not_finite
from timm_wsms.training.trainer import DeviceBatches, Trainer

STEPS = 2  # the first one compiles, starts workers and allocates; the second tells the speed

TrainStep = Callable[[Trainer, DeviceBatches, int, int, StepSync], StepResult]


@dataclass(frozen=True)
class Estimate:
    """What a run will need.

    Attributes:
        memory: peak of the process that needs the most, in bytes: of its GPU, or of the process itself on a CPU.
        seconds: for all steps and evaluations.
        step: seconds of one optimizer step.
        since_start: `memory` is measured since the start of the process, including earlier networks, as on a CPU.
        streamed: images come from a stream, whose shuffle buffer is filled before an epoch's first step.
        largest: the steps were at this side, the largest of several training sizes; None: there is one size.
    """

    memory: int
    seconds: float
    step: float
    since_start: bool
    streamed: bool
    largest: int | None = None

    def __str__(self) -> str:
        since_start = " since its start" if self.since_start else ""
        buffer = ", not counting the time to fill the shuffle buffer in each epoch" if self.streamed else ""
        side = f", at the largest of data.train_sizes ({self.largest} pixels)" if self.largest else ""
        return (
            f"peak memory {self.memory / 2**30:.2f} GiB per process{since_start}; "
            f"about {self.seconds / 3600:.2g} hours at {self.step:.3g} seconds per step, from a single one"
            f"{side}{buffer}"
        )


def dry_run(trainer: Trainer, train_step: TrainStep) -> Estimate:
    """Trains for two steps, as in the last epoch, when nothing is frozen any more, and evaluates one batch.

    This changes the network. Every process has to call it.

    Args:
        trainer: the run's trainer; nothing is written.
        train_step: the training script's own.

    Raises:
        UserError: a loss or gradient is not finite, and no step may be skipped.
    """
    run, settings, accelerator = trainer.run, trainer.settings, trainer.accelerator
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)  # leave out earlier networks' memory
    sync, steps, seconds_per_step = StepSync(accelerator), trainer.steps_per_epoch, 0.0
    batches = trainer.start_epoch(settings.epochs)
    for update in range(min(STEPS, steps)):
        started = time.perf_counter()
        result = train_step(trainer, batches, settings.epochs, update, sync)
        seconds_per_step = time.perf_counter() - started
        if result.flags.bad and not settings.max_skipped_steps:
            raise not_finite(result, settings.epochs, update)
    evaluations = -(-settings.epochs // settings.eval_every) * (1 if trainer.ema is None else 2)
    seconds = settings.epochs * steps * seconds_per_step
    seconds += evaluations * len(run.test_loader) * _evaluation_batch(trainer)
    # Of all processes, the one that needs the most.
    needs = torch.tensor([_peak_memory(accelerator.device), seconds, seconds_per_step], dtype=torch.float64)
    memory, seconds, seconds_per_step = accelerator.gather(needs[None].to(accelerator.device)).amax(0).tolist()
    return Estimate(
        int(memory),
        seconds,
        seconds_per_step,
        since_start=accelerator.device.type != "cuda",
        streamed=isinstance(run.train_loader.split, Stream),
        largest=max(settings.data.train_sizes) if settings.data.train_sizes else None,
    )


def _evaluation_batch(trainer: Trainer) -> float:
    """Evaluates one batch; returns the seconds it took."""
    batch = next(iter(trainer.run.test_loader), None)
    if batch is None:  # more processes than images
        return 0.0
    started = time.perf_counter()
    trainer.final.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        trainer.final(batch.images.to(trainer.accelerator.device)).sum().item()  # waits for the device
    return time.perf_counter() - started


def _peak_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
