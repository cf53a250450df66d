"""How far a run has come: what a checkpoint holds besides the weights, and the results of a step and an epoch."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from timm_wsms.errors import UserError
from timm_wsms.training.checkpoint import Position
from timm_wsms.training.fault_tolerance.step_sync import StepFlags


class StepResult(NamedTuple):
    """The result of one optimizer step.

    Attributes:
        loss: mean over this process's images.
        norm: norm of all gradients, before clipping; 0 with a gradient scaler.
        images: indices of this process's images, int64.
        flags: what the processes agreed on; if `bad`, the step was skipped.
    """

    loss: float
    norm: float
    images: torch.Tensor
    flags: StepFlags


@dataclass(frozen=True)
class EpochProgress:
    """How far an epoch has come.

    Attributes:
        update: optimizer steps done, including those ...
        skipped: ... that were skipped because the loss or a gradient was not finite.
        loss: sum of the other steps' losses in this process.
        seconds: time taken, of which ...
        waited: ... this process spent this much waiting for images.
    """

    update: int = 0
    skipped: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0

    def after(self, step: StepResult, seconds: float, waited: float) -> "EpochProgress":
        """The progress after one more step, which took `seconds`, of which it waited `waited` for images."""
        return EpochProgress(
            self.update + 1,
            self.skipped + step.flags.bad,
            self.loss + (0.0 if step.flags.bad else step.loss),
            self.seconds + seconds,
            self.waited + waited,
        )


@dataclass(frozen=True)
class EpochResult:
    """The result of an epoch of training.

    Attributes:
        train_loss: mean over all images and processes.
        lr: learning rate of the last step.
        seconds: time it took.
        images_per_second: over all processes.
        data_wait: fraction of the time that process 0 spent waiting for images.
        skipped: steps skipped because the loss or a gradient was not finite.
    """

    train_loss: float
    lr: float
    seconds: float
    images_per_second: float
    data_wait: float
    skipped: int


@dataclass
class RunState:
    """How far a run has come. The training loop owns it; the checkpoint manager saves and restores it.

    Attributes:
        metrics: one entry per epoch done, the same in every process.
        progress: progress in the epoch after them.
    """

    metrics: list[dict[str, Any]] = field(default_factory=list)
    progress: EpochProgress = EpochProgress()

    @property
    def epoch(self) -> int:
        """Number of the epoch in progress, counted from 1."""
        return len(self.metrics) + 1

    @property
    def position(self) -> Position:
        """The name of a checkpoint of this state."""
        return Position(len(self.metrics), self.progress.update)

    def end_epoch(self, result: EpochResult) -> None:
        """Adds the result of the epoch in progress to the metrics; the next epoch begins."""
        self.metrics.append({"epoch": self.epoch, **dataclasses.asdict(result)})
        self.progress = EpochProgress()

    def stopped_improving(self, epochs: int | None) -> bool:
        """Whether the highest accuracy is at least `epochs` measured epochs old; among equal ones, the first counts.

        It follows from what a checkpoint holds, so a resumed run stops where an uninterrupted one does.

        Args:
            epochs: the setting `early_stop`; None: never.
        """
        measured = [row for row in self.metrics if "test_top1" in row]
        if epochs is None or not measured:
            return False
        best = max(measured, key=lambda row: row["test_top1"])
        return measured[-1]["epoch"] - best["epoch"] >= epochs

    def best_epochs(self, count: int) -> list[Position]:
        """The `count` epochs with the highest accuracy; among equal ones, the first."""
        measured = [row for row in self.metrics if "test_top1" in row]
        best = sorted(measured, key=lambda row: row["test_top1"], reverse=True)
        return [Position(row["epoch"]) for row in best[:count]]


def not_finite(step: StepResult, epoch: int, update: int, remark: str = "") -> UserError:
    """The error about a step that was skipped; names process, step and images. Every process has to call it.

    Args:
        step: this process's.
        epoch: counted from 1.
        update: number of the step within the epoch, counted from 0.
        remark: anything else a user should know.
    """
    from accelerate.utils import gather_object

    found = gather_object([(step.loss, step.norm, step.images.tolist())])
    # A gradient is every process's; a loss is that of its images alone.
    guilty = [process for process, (loss, _, _) in enumerate(found) if not np.isfinite(loss)] or range(len(found))
    what = f"the loss is {found[guilty[0]][0]}" if not np.isfinite(found[guilty[0]][0]) else "a gradient is not finite"
    images = "; ".join(f"process {process}: {' '.join(map(str, found[process][2]))}" for process in guilty)
    return UserError(
        f"{what} in epoch {epoch}, step {update + 1}; {remark}lower --lr, limit the gradients with --clip_grad 1, or "
        f"allow --max_skipped_steps; its images: {images}"
    )
