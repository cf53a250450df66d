"""One epoch of training."""

import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from timm_wsms.data import Loader
from timm_wsms.errors import UserError
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from timm.utils import ModelEmaV3


@dataclass(frozen=True)
class EpochResult:
    """What an epoch of training gave.

    Attributes:
        train_loss: Mean over all images and processes.
        lr: Learning rate of the last update.
        seconds: Time it took.
        images_per_second: Over all processes.
    """

    train_loss: float
    lr: float
    seconds: float
    images_per_second: float


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
) -> EpochResult:
    """Trains for one epoch.

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

    Returns:
        Loss and speed.

    Raises:
        UserError: the loss is no longer finite.
    """
    _seed(settings.seed, epoch, accelerator.process_index)
    loader.set_epoch(epoch)
    model.train()
    steps = settings.grad_accumulation
    updates = len(loader) // steps
    total = torch.zeros((), device=accelerator.device)  # stays on the device: reading it would wait for the device
    batches = iter(loader)
    lr = 0.0
    started = time.perf_counter()
    for update in _progress(range(updates), f"epoch {epoch}/{settings.epochs}", accelerator.is_main_process):
        lr = schedule.set((epoch - 1) * updates + update)
        for step in range(steps):
            _, images, labels = next(batches)
            images = images.to(
                accelerator.device,
                memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format,
                non_blocking=True,
            )
            labels = labels.to(accelerator.device, non_blocking=True)
            # Gradients are exchanged once an update, with its last step.
            with accelerator.no_sync(model) if step < steps - 1 else nullcontext():
                loss = F.cross_entropy(model(images), labels, label_smoothing=settings.label_smoothing) / steps
                accelerator.backward(loss)
            total += loss.detach()
        if settings.clip_grad is not None:
            accelerator.clip_grad_norm_(model.parameters(), settings.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.update(network)
    mean = accelerator.reduce(total, reduction="mean").item() / updates
    seconds = time.perf_counter() - started
    if not np.isfinite(mean):
        raise UserError(f"the loss is {mean} in epoch {epoch}; lower --lr, or limit the gradients with --clip_grad 1")
    return EpochResult(mean, lr, seconds, updates * settings.batch_size / seconds)


class InFloat32(nn.Module):
    """A model with mixed precision off, whatever the surroundings say."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.model(images)


def _seed(seed: int, epoch: int, process: int) -> None:
    """Seeds dropout and its like by (seed, epoch, process), so that an epoch is the same after a resume."""
    from accelerate.utils import set_seed

    set_seed(int(np.random.SeedSequence([seed, epoch, process]).generate_state(1)[0]))


def _progress(updates: Iterable[int], description: str, show: bool) -> Iterable[int]:
    if not show:
        return updates
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(updates, desc=description, unit="step", mininterval=0.3 if terminal else 20, leave=terminal)
