"""What a training step works with: network, wrappers, optimizer, schedule, loss, average."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn

from timm_wsms.data import Batch
from timm_wsms.training.builders import compiled, placed
from timm_wsms.training.distill import Task, build_task
from timm_wsms.training.freeze import Freeze
from timm_wsms.training.loss import Mix, build_mix
from timm_wsms.training.run import Run
from timm_wsms.training.run_state import EpochProgress, EpochResult
from timm_wsms.utils import InFloat32

if TYPE_CHECKING:
    from accelerate import Accelerator


class Trainer:
    """Wraps a run's network and optimizer, and rewraps them when parts of the network are frozen or thawed.

    Args:
        run: what is trained, on what, and how.
        accelerator: wraps the network and the optimizer.

    Attributes:
        model: the network in its wrappers; None before `set_epoch`.
        optimizer: the run's optimizer in its wrapper; None before `set_epoch`.
        task: images and labels → {"loss": loss of `model`}; None before `set_epoch`.
        ema: moving average of the network, if the settings ask for one.
        final: the network that is published: the average if there is one.
        buffers: a copy of the network's buffers, to undo a step; None before `start_epoch`.
        steps_per_epoch: optimizer steps.
    """

    def __init__(self, run: Run, accelerator: "Accelerator"):
        settings = run.settings
        self.run, self.settings, self.accelerator = run, settings, accelerator
        self.network, self.schedule = run.network, run.schedule
        self.steps_per_epoch = len(run.train_loader) // settings.grad_accumulation
        self.ema: ModelEmaV3 | None = None
        if settings.ema_decay is not None:
            self.ema = ModelEmaV3(run.network, decay=settings.ema_decay, use_warmup=settings.ema_warmup)
        self.final: nn.Module = run.network if self.ema is None else self.ema.module
        self._compiled = compiled(run.network) if settings.compile else run.network
        self.model: Any = None
        self.optimizer: Any = None
        self.task: Task | Any = None
        self.buffers: BufferSnapshot | Any = None
        self._freeze = Freeze(run.network, settings)
        self._mix = build_mix(settings, len(run.train_loader.split.class_names), run.train_loader.batch_size)
        self._teacher: Any = run.teacher
        if run.teacher is not None:
            placed(run.teacher, settings, accelerator.device)
            if settings.compile:
                run.teacher.compile()
            # in the precision of the run
            self._teacher = accelerator.prepare_model(run.teacher, evaluation_mode=True)

    def set_epoch(self, epoch: int) -> None:
        """Freezes or unfreezes parts as the settings say, and wraps the network again if that changed what is trained.

        DDP exchanges the gradients of the parameters that were trainable when it was built, and waits for all of them.
        """
        if not self._freeze.set_epoch(epoch) and self.model is not None:
            return
        self.model = self.optimizer = self.task = None  # the old wrapper goes, and the memory it holds
        self._settled = self.accelerator.num_processes <= 2  # two numbers have one sum, whatever their order
        self.accelerator.free_memory()
        wrapped = InFloat32(self._compiled) if self.run.in_float32 else self._compiled
        # Accelerate replaces the forward of what it prepares; inside a Sequential the network keeps its own.
        self.model, self.optimizer = self.accelerator.prepare(nn.Sequential(wrapped), self.run.optimizer)
        self.task = build_task(self.model, self.network, self._teacher, self.settings, self.accelerator.device)

    def start_epoch(self, epoch: int, update: int = 0) -> "DeviceBatches":
        """Prepares for the steps of an epoch from number `update` on.

        Returns:
            The micro-batches from there on, `grad_accumulation` of them per step.
        """
        self.set_epoch(epoch)
        self.buffers = BufferSnapshot(self.model)
        self.model.train()
        for module in self._freeze.norms:
            module.eval()
        self._settle_buckets()
        self.run.train_loader.set_epoch(epoch, update * self.settings.grad_accumulation)
        return DeviceBatches(iter(self.run.train_loader), self._mix, self.settings.channels_last)

    def _settle_buckets(self) -> None:
        """Makes DDP choose its gradient buckets now, by a step whose gradients are discarded.

        It chooses new ones after its first backward pass, and a gradient's place in its bucket determines the order of
        summation. So the first step after a resume would round differently from the same step of an uninterrupted run.
        """
        if self._settled:
            return
        loader, size = self.run.train_loader, self.run.data_config["input_size"]
        images = torch.zeros(loader.batch_size, *size, device=self.accelerator.device)
        labels = torch.zeros(loader.batch_size, dtype=torch.long, device=self.accelerator.device)
        batches = DeviceBatches(iter([Batch(labels, images, labels)]), self._mix, self.settings.channels_last)
        _, images, labels = next(batches)
        self.buffers.save()
        self.accelerator.backward(self.task(images, labels)["loss"])
        self.optimizer.zero_grad()
        self.buffers.restore()
        self._settled = True

    def seed_step(self, epoch: int, update: int) -> None:
        """Seeds dropout, mixup and the like, so that a step is the same after a resume."""
        from accelerate.utils import set_seed

        key = [self.settings.seed, epoch, update, self.accelerator.process_index]
        set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def clip_gradients(self, loss: torch.Tensor) -> tuple[float, float]:
        """Clips the gradients to `clip_grad`; returns `loss` and their norm before, read from the device at once.

        With a gradient scaler the norm is 0: the scaler itself skips steps with infinite gradients, as it should.
        """
        parameters = list(self.model.parameters())
        if self.settings.clip_grad is not None:
            norm = self.accelerator.clip_grad_norm_(parameters, self.settings.clip_grad)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.accelerator.scaler is not None:
            norm = torch.zeros_like(loss)
        value, length = torch.stack([loss, norm.to(loss)]).tolist()
        return value, length

    def discard_step(self) -> None:
        """Undoes the forward and backward passes of a step whose loss or gradients are not finite."""
        self.buffers.restore()
        self.optimizer.zero_grad()
        if self.accelerator.scaler is not None and self.settings.clip_grad is not None:
            self.accelerator.scaler.update()  # it has unscaled the gradients, and would refuse to do so again

    def epoch_result(self, epoch: int, progress: EpochProgress) -> EpochResult:
        """Sums up an epoch whose steps are all done. Every process has to call it."""
        total = torch.tensor(progress.loss, dtype=torch.float32, device=self.accelerator.device)
        steps = max(1, self.steps_per_epoch - progress.skipped)
        return EpochResult(
            train_loss=self.accelerator.reduce(total, reduction="mean").item() / steps,
            lr=self.schedule.set(epoch * self.steps_per_epoch - 1),
            seconds=progress.seconds,
            images_per_second=self.steps_per_epoch * self.settings.batch_size / progress.seconds,
            data_wait=progress.waited / progress.seconds,
            skipped=progress.skipped,
        )


class DeviceBatches:
    """This process's micro-batches, mixed.

    Args:
        batches: from the loader.
        mix: mixup and cutmix.
        channels_last: memory order of the images.

    Attributes:
        waited: seconds spent waiting for images so far.
    """

    def __init__(self, batches: Iterator[Batch], mix: Mix, channels_last: bool):
        self._batches, self._mix = batches, mix
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.waited = 0.0

    def __next__(self) -> Batch:
        index, images, labels = self._load()
        images, labels = self._mix(images.contiguous(memory_format=self._memory_format), labels)
        return Batch(index, images, labels)

    def _load(self) -> Batch:
        started = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - started
        return batch


class BufferSnapshot:
    """A copy of a model's buffers: a forward pass whose loss is not finite corrupts the running statistics.

    Uses `_foreach_copy_`, which is private, but torch's optimizers rely on it: one call instead of one for each buffer.
    """

    def __init__(self, model: nn.Module):
        self._buffers = list(model.buffers())
        self._copies = [buffer.clone() for buffer in self._buffers]

    def save(self) -> None:
        """Copies them."""
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)

    def restore(self) -> None:
        """Restores the model's buffers from the last copy."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
