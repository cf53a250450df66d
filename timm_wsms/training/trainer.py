"""A network with what its training puts around it: frozen parts, wrappers, teacher, average."""

from typing import TYPE_CHECKING, Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from timm_wsms.data import Loader
from timm_wsms.training.builders import placed
from timm_wsms.training.distill import Task, Teacher, build_task
from timm_wsms.training.epoch import AfterUpdate, EpochProgress, EpochResult, train_epoch
from timm_wsms.training.fault_tolerance.step_sync import StepSync
from timm_wsms.training.freeze import Freeze
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator


class Trainer:
    """Keeps the wrappers fitting while parts of the network are frozen and thawed.

    Args:
        network: without wrappers.
        optimizer: of all its parameters; those that are frozen have no gradient, so it leaves them alone.
        teacher: from `build_teacher`.
        settings: of the run.
        accelerator: wraps the network and the optimizer.

    Attributes:
        model: the network in its wrappers; None before `set_epoch`.
        ema: moving average of the network, if there is to be one.
        final: the network that is published: the average if there is one.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        teacher: Teacher | None,
        settings: Settings,
        accelerator: "Accelerator",
    ):
        self.network, self.optimizer = network, optimizer
        self._settings, self._accelerator = settings, accelerator
        self.ema: ModelEmaV3 | None = None
        if settings.ema_decay is not None:
            self.ema = ModelEmaV3(network, decay=settings.ema_decay, use_warmup=settings.ema_warmup)
        self.final: nn.Module = network if self.ema is None else self.ema.module
        self._freeze = Freeze(network, settings)
        self._teacher = teacher
        if teacher is not None:
            placed(teacher, settings, accelerator.device)
            if settings.compile:
                teacher.compile()
            self._teacher = accelerator.prepare_model(teacher, evaluation_mode=True)  # in the precision of the run
        self.model: Any = None
        self._stepper: Any = None
        self._task: Task | None = None

    def set_epoch(self, epoch: int) -> None:
        """Freezes or thaws what the settings say; wraps the network, anew where that has changed what is trained.

        DDP exchanges the gradients of the parameters that could be trained when it was built, and waits for all of
        them.
        """
        if not self._freeze.set_epoch(epoch) and self.model is not None:
            return
        self.model = self._stepper = self._task = None  # the old wrapper goes, and the memory it holds
        self._accelerator.free_memory()
        compiled: Any = torch.compile(self.network) if self._settings.compile else self.network
        # Accelerate replaces the forward of what it prepares; inside a Sequential the network keeps its own.
        self.model, self._stepper = self._accelerator.prepare(nn.Sequential(compiled), self.optimizer)
        self._task = build_task(self.model, self.network, self._teacher, self._settings, self._accelerator.device)

    def train_epoch(
        self,
        loader: Loader,
        schedule: Schedule,
        *,
        epoch: int,
        so_far: EpochProgress | None = None,
        sync: StepSync | None = None,
        after_update: AfterUpdate | None = None,
    ) -> EpochResult:
        """Trains for one epoch, or for the rest of it; arguments and errors are those of `epoch.train_epoch`."""
        self.set_epoch(epoch)
        return train_epoch(
            *(self.model, loader, self._stepper, schedule, self._accelerator, self._settings),
            epoch=epoch,
            ema=self.ema,
            network=self.network,
            task=self._task,
            frozen_norms=self._freeze.norms,
            so_far=so_far,
            sync=sync,
            after_update=after_update,
        )
