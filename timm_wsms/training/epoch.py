"""One epoch of training."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from timm_wsms.data import Batch, Loader
from timm_wsms.data.sources import progress
from timm_wsms.errors import UserError
from timm_wsms.training.distill import Task, build_task
from timm_wsms.training.fault_tolerance.step_sync import StepFlags, StepSync
from timm_wsms.training.loss import build_mix
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from timm.utils import ModelEmaV3


@dataclass(frozen=True)
class EpochProgress:
    """How far an epoch is: all that it takes, beside the weights, to go on with it.

    Attributes:
        update: Optimizer steps gone through.
        skipped: Those of them that were left out, since the loss was not finite.
        loss: Sum of the others' losses in this process.
        seconds: Time it has taken, of which ...
        waited: ... so much was spent waiting for images, in this process.
    """

    update: int = 0
    skipped: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True)
class EpochResult:
    """What an epoch of training gave.

    Attributes:
        train_loss: Mean over all images and processes.
        lr: Learning rate of the last update.
        seconds: Time it took.
        images_per_second: Over all processes.
        data_wait: Part of the time in which process 0 waited for images.
        skipped: Updates left out, since the loss was not finite.
    """

    train_loss: float
    lr: float
    seconds: float
    images_per_second: float
    data_wait: float
    skipped: int


AfterUpdate = Callable[[EpochProgress, StepFlags], None]


def micro_batch_size(settings: Settings, num_processes: int) -> int:
    """Images of one forward pass in one process.

    Raises:
        UserError: `batch_size` cannot be divided.
    """
    parts = num_processes * settings.grad_accumulation
    size, remainder = divmod(settings.batch_size, parts)
    if remainder or not size:
        raise UserError(
            f"batch_size {settings.batch_size} cannot be divided among {num_processes} processes × grad_accumulation "
            f"{settings.grad_accumulation}; choose a multiple of {parts}"
        )
    return size


def train_epoch(
    model: nn.Module,
    loader: Loader,
    optimizer: "AcceleratedOptimizer",
    schedule: Schedule,
    accelerator: "Accelerator",
    settings: Settings,
    *,
    epoch: int,
    ema: "ModelEmaV3 | None" = None,
    network: nn.Module | None = None,
    so_far: EpochProgress | None = None,
    task: Task | None = None,
    frozen_norms: Sequence[nn.Module] = (),
    sync: StepSync | None = None,
    after_update: AfterUpdate | None = None,
) -> EpochResult:
    """Trains for one epoch, or for the rest of it.

    Args:
        model: prepared by `accelerator`.
        loader: this process's micro batches of (index, images (b, c, h, w), labels (b,)).
        optimizer: prepared by `accelerator`.
        schedule: sets the learning rate of each update.
        accelerator: prepared `model` and `optimizer`.
        settings: of the run.
        epoch: its number, counted from 1.
        ema: moving average of `network`, updated after each step.
        network: `model` without wrappers.
        so_far: where to begin, in an epoch that was interrupted.
        task: computes the loss with `model`; None for that of the labels alone.
        frozen_norms: stay in eval mode.
        sync: lets the processes agree.
        after_update: called after each update, and before the error when losses are not finite.

    Returns:
        Loss and speed.

    Raises:
        UserError: more losses than allowed were not finite.
    """
    sync, so_far = sync or StepSync(accelerator), so_far or EpochProgress()
    steps, updates = settings.grad_accumulation, len(loader) // settings.grad_accumulation
    task = task or build_task(model, model, None, settings, accelerator.device)
    mix = build_mix(settings, len(loader.split.class_names), loader.batch_size)
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    kept = BufferSnapshot(model)
    loader.set_epoch(epoch, so_far.update * steps)
    batches = iter(loader)
    model.train()
    for module in frozen_norms:
        module.eval()
    lr = schedule.set((epoch - 1) * updates + max(0, so_far.update - 1))
    started = time.perf_counter()
    what, rest = f"epoch {epoch}/{settings.epochs}", range(so_far.update, updates)
    for update in progress(rest, what, unit="step", initial=so_far.update, total=updates):
        lr = schedule.set((epoch - 1) * updates + update)
        _seed(settings.seed, epoch, update, accelerator.process_index)
        kept.keep()
        total = torch.zeros((), device=accelerator.device)  # stays there: reading it would wait for the device
        met, waited = [], 0.0
        for step in range(steps):
            sync.note(f"loading images for step {update + 1} of epoch {epoch}")
            (index, images, labels), seconds = _timed(batches)
            met.append(index)
            waited += seconds
            images = images.to(accelerator.device, memory_format=memory_format, non_blocking=True)
            images, labels = mix(images, labels.to(accelerator.device, non_blocking=True))
            sync.note(f"computing step {update + 1} of epoch {epoch}")
            # Gradients are exchanged once an update, with its last step.
            with accelerator.no_sync(model) if step < steps - 1 else nullcontext():
                loss = task(images, labels)["loss"] / steps
                accelerator.backward(loss)
            total += loss.detach()
        sync.note(f"waiting for the others after step {update + 1} of epoch {epoch}")
        value, norm = _loss_and_norm(total, model, accelerator, settings.clip_grad)
        agreed = sync.exchange(bad=not np.isfinite(value + norm))
        if agreed.bad:
            kept.put_back()
            optimizer.zero_grad()
            if accelerator.scaler is not None and settings.clip_grad is not None:
                accelerator.scaler.update()  # it has unscaled the gradients, and would refuse to do so again
            if so_far.skipped >= settings.max_skipped_steps:
                if after_update:
                    after_update(so_far, agreed._replace(save=True, stop=False))
                raise _not_finite(value, norm, met, epoch, update, accelerator)
        else:
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update(network, (epoch - 1) * updates + update + 1 if ema.use_warmup else None)
        now = time.perf_counter()
        so_far = EpochProgress(
            update + 1,
            so_far.skipped + agreed.bad,
            so_far.loss + (0.0 if agreed.bad else value),
            so_far.seconds + now - started,
            so_far.waited + waited,
        )
        started = now
        if after_update:
            after_update(so_far, agreed)
    return _result(so_far, lr, updates, accelerator, settings)


def _result(
    so_far: EpochProgress, lr: float, updates: int, accelerator: "Accelerator", settings: Settings
) -> EpochResult:
    total = torch.tensor(so_far.loss, dtype=torch.float32, device=accelerator.device)
    mean = accelerator.reduce(total, reduction="mean").item() / max(1, updates - so_far.skipped)
    speed = updates * settings.batch_size / so_far.seconds
    return EpochResult(mean, lr, so_far.seconds, speed, so_far.waited / so_far.seconds, so_far.skipped)


class BufferSnapshot:
    """A copy of a model's buffers: a forward pass whose loss is not finite has spoiled the running statistics."""

    def __init__(self, model: nn.Module):
        self._buffers = list(model.buffers())
        self._copies = [buffer.clone() for buffer in self._buffers]

    def keep(self) -> None:
        """Copies them."""
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)

    def put_back(self) -> None:
        """Gives the model what was copied last."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)


class InFloat32(nn.Module):
    """A model with mixed precision off, whatever the surroundings say."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.model(images)


def _loss_and_norm(
    loss: torch.Tensor, model: nn.Module, accelerator: "Accelerator", clip_grad: float | None
) -> tuple[float, float]:
    """Clips the gradients; returns the loss and their norm before, read from the device at once.

    With a gradient scaler the norm is 0: the scaler itself leaves out steps with infinite gradients, as it has to.
    """
    if clip_grad is not None:
        norm = accelerator.clip_grad_norm_(model.parameters(), clip_grad)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if accelerator.scaler is not None:
        norm = torch.zeros_like(loss)
    value, length = torch.stack([loss, norm.to(loss)]).tolist()
    return value, length


def _not_finite(
    value: float, norm: float, met: list[torch.Tensor], epoch: int, update: int, accelerator: "Accelerator"
) -> UserError:
    """Says in which process, with which images."""
    from accelerate.utils import gather_object

    found = gather_object([(value, norm, torch.cat(met).tolist())])
    # A gradient is every process's; a loss is that of its images alone.
    guilty = [process for process, (loss, _, _) in enumerate(found) if not np.isfinite(loss)] or range(len(found))
    what = f"the loss is {found[guilty[0]][0]}" if not np.isfinite(found[guilty[0]][0]) else "a gradient is not finite"
    images = "; ".join(f"process {process}: {' '.join(map(str, found[process][2]))}" for process in guilty)
    return UserError(
        f"{what} in epoch {epoch}, step {update + 1}; the weights before it are saved; lower --lr, limit the gradients "
        f"with --clip_grad 1, or allow --max_skipped_steps; its images: {images}"
    )


def _timed(batches: Iterator[Batch]) -> tuple[Batch, float]:
    """The next batch, and the seconds waited for it."""
    started = time.perf_counter()
    batch = next(batches)
    return batch, time.perf_counter() - started


def _seed(seed: int, epoch: int, update: int, process: int) -> None:
    """Seeds dropout, mixup and their like, so that an update is the same after a resume."""
    from accelerate.utils import set_seed

    set_seed(int(np.random.SeedSequence([seed, epoch, update, process]).generate_state(1)[0]))
