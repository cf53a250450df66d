"""The learning rate of every update, from timm's schedulers, or PyTorch's for one-cycle."""

import warnings
from typing import Any

from timm.scheduler import create_scheduler_v2
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from timm_wsms.errors import UserError
from timm_wsms.training.settings import Settings


class Schedule:
    """Sets an optimizer's learning rate from only the number of the update.

    Nothing is remembered from one update to the next, so a resumed run needs nothing but that number.

    Args:
        optimizer: without wrappers, as it was built; its learning rates are the peak ones, unlike a checkpoint's.
        settings: `schedule`, `epochs` and, for one-cycle, `lr` are used.
        updates_per_epoch: optimizer steps in one epoch.

    Raises:
        UserError: the settings of `schedule` make no sense.
    """

    def __init__(self, optimizer: Optimizer, settings: Settings, updates_per_epoch: int):
        self.optimizer = optimizer
        self.updates_per_epoch = updates_per_epoch
        self.onecycle: OneCycleLR | None = None
        self.timm: Any = None
        try:
            if settings.schedule.name == "onecycle":
                self.onecycle = self._onecycle(settings)
            else:
                self.timm = self._timm(settings)
        except (ValueError, AssertionError, ZeroDivisionError) as error:
            raise UserError(
                f"schedule {settings.schedule.name} refuses its settings: {error or type(error).__name__}"
            ) from error

    def _onecycle(self, settings: Settings) -> OneCycleLR:
        schedule = settings.schedule
        onecycle = OneCycleLR(
            self.optimizer,
            max_lr=[group["lr"] * group.get("lr_scale", 1.0) for group in self.optimizer.param_groups],
            total_steps=settings.epochs * self.updates_per_epoch,
            pct_start=schedule.pct_start,
            div_factor=schedule.div_factor,
            final_div_factor=schedule.final_div_factor,
            cycle_momentum=False,
        )
        with warnings.catch_warnings():  # torch warns only at its first step, which here precedes the optimizer's
            warnings.simplefilter("ignore")
            onecycle.step()
        return onecycle

    def _timm(self, settings: Settings) -> Any:
        schedule = settings.schedule
        scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched="multistep" if schedule.name == "step" else schedule.name,
            num_epochs=settings.epochs,
            # timm's milestone m takes effect at the epoch with index m - 1 from 0, which is epoch m counted from 1.
            decay_milestones=schedule.milestones,
            decay_rate=schedule.gamma,
            min_lr=schedule.min_lr,
            warmup_epochs=schedule.warmup_epochs,
            warmup_lr=schedule.warmup_lr,
            step_on_epochs=schedule.name != "cosine",
            updates_per_epoch=self.updates_per_epoch,
        )
        return scheduler

    def set(self, update: int) -> float:
        """Sets the learning rate for update number `update`, counted from 0 over the whole run.

        Returns:
            The learning rate of the first parameter group, before it is scaled by layer decay.
        """
        if self.onecycle is not None:
            self.onecycle.last_epoch = update - 1
            self.onecycle.step()
        elif self.timm.t_in_epochs:
            self.timm.step(update // self.updates_per_epoch)
        else:
            self.timm.step_update(update)
        first = self.optimizer.param_groups[0]
        return first["lr"] / first.get("lr_scale", 1.0)
