"""Saves a run when that is due or when it is asked to stop, and brings it back."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from timm_wsms.cli_errors import Stopped
from timm_wsms.data import Loader, Stream
from timm_wsms.errors import UserError
from timm_wsms.training import checkpoint
from timm_wsms.training.checkpoint import Position
from timm_wsms.training.epoch import AfterUpdate, EpochProgress
from timm_wsms.training.fault_tolerance.step_sync import StepFlags, StepSync
from timm_wsms.training.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class CheckpointManager:
    """Keeps one run's checkpoints. Every process has one, process 0's writes.

    Attributes:
        network: without wrappers.
        optimizer: without wrappers.
        ema: the averaged network, if there is one.
        metrics: one entry for each epoch done; the same in every process.
        saved: how far the run is in the newest checkpoint.
    """

    settings: Settings
    network: nn.Module
    optimizer: Optimizer
    ema: nn.Module | None
    loader: Loader
    accelerator: "Accelerator"
    sync: StepSync
    metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    saved: Position | None = None

    def resume(self) -> tuple[int, EpochProgress]:
        """Brings the run to where its newest whole checkpoint is, if there is one.

        Returns:
            The epochs done, and how far the next one is.

        Raises:
            UserError: no checkpoint is whole, or it does not fit the settings.
        """
        from accelerate.utils import broadcast_object_list

        found: list[Any] = [None]
        if self.accelerator.is_main_process:  # it alone may rename what is damaged
            folder, damaged = checkpoint.newest_whole(Path(self.settings.output))
            for line in damaged:
                print(f"{line}; the checkpoint before it is used")
            found = [folder and str(folder)]
        broadcast_object_list(found)
        if found[0] is None:
            return 0, EpochProgress()
        extra = checkpoint.load_run_state(Path(found[0]), self.network, self.optimizer, self.ema)
        self._check_images(found[0], extra)
        self.metrics[:] = extra["metrics"]
        self.loader.left_out.update(extra["left_out"])
        if self.accelerator.scaler is not None and extra["scaler"]:
            self.accelerator.scaler.load_state_dict(extra["scaler"])
        so_far = self._share(extra["so_far"], extra["images"] // self.settings.batch_size)
        self.saved = position = Position(extra["epoch"], so_far.update)
        self.accelerator.print(f"resumed after {_words(position)}, from {found[0]}")
        return extra["epoch"], so_far

    def _source(self) -> dict[str, int | None]:
        """What the order of the images follows from, beside the settings."""
        split = self.loader.split
        return {"split_size": len(split), "shards": split.rows.num_shards if isinstance(split, Stream) else None}

    def _check_images(self, folder: str, extra: dict[str, Any]) -> None:
        """Checks that their order is still the same, and that an epoch is no shorter than what is done of it.

        Raises:
            UserError: it is not.
        """
        for name, now in self._source().items():
            before = extra.get(name, now)  # `shards` is newer than some runs
            if before != now and not self.settings.resume_with_changes:
                what = "training images" if name == "split_size" else "shards of training images"
                raise UserError(
                    f"the run in {self.settings.output} was started with {before} {what}, not {now}; bring them "
                    "back to resume it, or --resume_with_changes true, or choose another --output"
                )
        done = extra["images"] // self.settings.batch_size
        updates = len(self.loader) // self.settings.grad_accumulation
        if done > updates:
            raise UserError(
                f"{folder} lies {done} steps into an epoch, which now has {updates}; resume it with the images and the "
                "--batch_size it had, or remove it to go on from the one before it, or choose another --output"
            )

    def _share(self, saved: list[dict[str, Any]], update: int) -> EpochProgress:
        """This process's part of how far the epoch was; if there were more or fewer of them, the mean loss."""
        if len(saved) == self.accelerator.num_processes:
            return EpochProgress(**saved[self.accelerator.process_index] | {"update": update})
        loss = sum(part["loss"] for part in saved) / len(saved)
        return EpochProgress(**saved[0] | {"update": update, "loss": loss})

    def in_epoch(self, epoch: int) -> AfterUpdate:
        """What `train_epoch` has to call after each update of this epoch, counted from 1."""
        return partial(self._after_update, epoch)

    def _after_update(self, epoch: int, so_far: EpochProgress, agreed: StepFlags) -> None:
        """Saves if that is due; leaves if a process was asked to stop.

        Raises:
            Stopped: it was, and the run is saved.
        """
        every = self.settings.checkpoint_every_steps
        if agreed.stop or agreed.save or (every is not None and so_far.update % every == 0):
            self.save(epoch - 1, so_far)
        if agreed.stop:
            raise Stopped(f"stopped by {self.sync.reason} and saved after {_words(Position(epoch - 1, so_far.update))}")

    def save(self, epoch: int, so_far: EpochProgress | None = None) -> None:
        """Writes a checkpoint after so many epochs, or in the midst of the next one, and removes those out of date."""
        from accelerate.utils import gather_object

        so_far = so_far or EpochProgress()
        position = Position(epoch, so_far.update)
        if position == self.saved:
            return
        self.sync.note(f"saving after {_words(position)}")
        shares = gather_object([(dataclasses.asdict(so_far), sorted(self.loader.left_out))])
        self.saved = position
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        extra = {
            "epoch": epoch,
            "images": so_far.update * self.settings.batch_size,
            "so_far": [share for share, _ in shares],
            "left_out": sorted(set().union(*(left_out for _, left_out in shares))),
            **self._source(),
            "metrics": self.metrics,
            "scaler": scaler and scaler.state_dict(),
        }
        checkpoints = Path(self.settings.output) / "checkpoints"
        checkpoint.save_run_state(checkpoints, position, self.network, self.optimizer, self.ema, extra)
        checkpoint.prune(checkpoints, self.settings.keep_last, self._best())

    def _best(self) -> list[Position]:
        """The epochs with the highest accuracy."""
        measured = [row for row in self.metrics if "test_top1" in row]
        best = sorted(measured, key=lambda row: row["test_top1"], reverse=True)  # of equals the first
        return [Position(row["epoch"]) for row in best[: self.settings.keep_best]]


def _words(position: Position) -> str:
    return f"epoch {position.epoch}" + (f" and {position.update} steps" if position.update else "")


def no_better(metrics: Sequence[dict[str, Any]], epochs: int | None) -> bool:
    """Whether so many epochs have gone by since the one with the highest accuracy; of equals the first counts.

    It follows from what a checkpoint holds, so a resumed run stops where an uninterrupted one does.

    Args:
        metrics: one entry for each epoch done, with `test_top1` where it was measured.
        epochs: `early_stop`; None never stops.
    """
    measured = [row for row in metrics if "test_top1" in row]
    if epochs is None or not measured:
        return False
    best = max(measured, key=lambda row: row["test_top1"])
    return measured[-1]["epoch"] - best["epoch"] >= epochs
