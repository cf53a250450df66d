"""Saves a run when that is due or when it is asked to stop, and restores it."""

import dataclasses
import hashlib
import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from timm_wsms.cli_errors import Stopped, this_machine
from timm_wsms.data import Stream
from timm_wsms.errors import UserError
from timm_wsms.training import checkpoint
from timm_wsms.training.checkpoint import Position
from timm_wsms.training.fault_tolerance.step_sync import StepFlags, StepSync
from timm_wsms.training.run_state import EpochProgress, RunState
from timm_wsms.training.trainer import Trainer


class CheckpointManager:
    """Saves and restores a run. Every process has one, and that of process 0 writes.

    Args:
        trainer: holds the network, the optimizer and the average.
        sync: knows why the run was asked to stop.
    """

    def __init__(self, trainer: Trainer, sync: StepSync):
        self.run, self.settings, self.accelerator = trainer.run, trainer.settings, trainer.accelerator
        self.sync = sync
        self._ema = trainer.ema and trainer.ema.module
        self._output = trainer.run.output
        self._saved: Position | None = None  # position of the newest checkpoint

    def resume(self) -> RunState:
        """Restores the run from its newest undamaged checkpoint, or returns the state of a new run.

        Raises:
            UserError: all checkpoints are damaged, the newest does not fit the settings, or not all machines see it.
        """
        from accelerate.utils import broadcast_object_list

        found: list[Any] = [None]
        if self.accelerator.is_main_process:  # only it may rename damaged ones
            folder, damaged = checkpoint.newest_whole(self._output)
            for line in damaged:
                print(f"{line}; the checkpoint before it is used")
            found = [folder and str(folder)]
        broadcast_object_list(found)
        self._check_seen_by_all(found[0])
        if found[0] is None:
            return RunState()
        extra = checkpoint.load_run_state(Path(found[0]), self.run.network, self.run.optimizer, self._ema)
        self._check_images(found[0], extra)
        self.run.train_loader.left_out.update(extra["left_out"])
        if self.accelerator.scaler is not None and extra["scaler"]:
            self.accelerator.scaler.load_state_dict(extra["scaler"])
        update = extra["images"] // self.settings.batch_size
        state = RunState(extra["metrics"], self._own_progress(extra["so_far"], update))
        self._saved = state.position
        self.accelerator.print(f"resumed after {_words(state.position)}, from {found[0]}")
        return state

    def _check_seen_by_all(self, folder: str | None) -> None:
        """Checks that no process misses a checkpoint because each machine has a folder of its own.

        Raises:
            UserError: the newest checkpoint of another process is not `folder`; names its machine.
        """
        from accelerate.utils import gather_object

        newest = checkpoint.newest(self._output)
        who = f"process {self.accelerator.process_index}{this_machine()}"
        seen: list[tuple[str, str]] = gather_object([(who, newest.name if newest else "none")])
        right = Path(folder).name if folder else "none"
        wrong = [f"{who} sees {name}" for who, name in seen if name != right]
        if wrong:
            raise UserError(
                f"not all processes see the newest checkpoint in {self._output}: {seen[0][0]} sees {right}, "
                f"{', '.join(wrong)}; give --output a folder that all machines share, or copy the newest folder to all"
            )

    def after_step(self, state: RunState, flags: StepFlags) -> None:
        """Saves within an epoch if that is due, and ends the run if a process was asked to stop.

        Raises:
            Stopped: it was, and the run is saved.
            UserError: it was, since a launcher has ended. If the processes ended without an error, the other machines'
                launchers would wait five minutes for it (torchrun's exit barrier).
        """
        every = self.settings.checkpoint_every_steps
        if flags.stop or flags.save or (every is not None and state.progress.update % every == 0):
            self.save(state)
        if flags.orphaned:
            raise UserError(
                f"the launcher{self.sync.orphans()} has ended; the run is saved after {_words(state.position)}: "
                "continue with --resume auto"
            )
        if flags.stop:
            raise Stopped(f"stopped by {self.sync.reason()} and saved after {_words(state.position)}")

    def after_epoch(self, state: RunState, evaluated: bool) -> None:
        """Saves between two epochs if that is due.

        Args:
            state: with the epoch's metrics, without its accuracy.
            evaluated: whether the accuracy comes next. It may turn out to be the best, so the epoch is saved.
        """
        done = state.position.epoch
        if done % self.settings.checkpoint_every == 0 or (self.settings.keep_best and evaluated):
            self.save(state)

    def save(self, state: RunState) -> None:
        """Writes a checkpoint, unless there is one of this state, and removes outdated ones."""
        from accelerate.utils import gather_object

        if state.position == self._saved:
            return
        self.sync.note(f"saving after {_words(state.position)}")
        parts = gather_object([(dataclasses.asdict(state.progress), sorted(self.run.train_loader.left_out))])
        self._saved = state.position
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        extra = {
            "epoch": state.position.epoch,
            "images": state.progress.update * self.settings.batch_size,
            "so_far": [progress for progress, _ in parts],
            "left_out": sorted(set().union(*(left_out for _, left_out in parts))),
            **self._source(),
            "class_names": self.run.train_loader.split.class_names,
            "metrics": state.metrics,
            "scaler": scaler and scaler.state_dict(),
        }
        folder = self._output / "checkpoints"
        checkpoint.save_run_state(folder, state.position, self.run.network, self.run.optimizer, self._ema, extra)
        checkpoint.prune(folder, self.settings.keep_last, state.best_epochs(self.settings.keep_best))

    def _source(self) -> dict[str, int | str | None]:
        """What determines the order of the images and their labels, besides the settings."""
        split, test = self.run.train_loader.split, self.run.test_loader.split
        labels = None if isinstance(split, Stream) or isinstance(test, Stream) else _digest(split.labels, test.labels)
        shards = split.rows.num_shards if isinstance(split, Stream) else None
        return {"split_size": len(split), "shards": shards, "labels": labels}

    def _check_images(self, folder: str, extra: dict[str, Any]) -> None:
        """Checks that the images' classes and order are still the same, and that an epoch is no shorter than the part
        already done.

        Raises:
            UserError: they are not; names what differs.
        """
        names = self.run.train_loader.split.class_names
        before = extra.get("class_names", names)  # newer than some runs
        if before != names and not self.settings.resume_with_changes:
            pairs = enumerate(zip_longest(before, names), start=1)
            number, was, now = next((number, was, now) for number, (was, now) in pairs if was != now)
            raise UserError(
                f"the run in {self._output} was started with other classes: class {number} was {json.dumps(was)} and "
                f"now is {json.dumps(now)}; give the classes their former names, or --resume_with_changes true to keep "
                "what was learned under the new ones, or choose another --output"
            )
        for name, now in self._source().items():
            before = extra.get(name, now)  # `shards` and `labels` are newer than some runs
            if before != now and not self.settings.resume_with_changes:
                what = {
                    "split_size": f"with {before} training images, not {now}",
                    "shards": f"with {before} shards of training images, not {now}",
                    "labels": "with other labels, or another number of test images",
                }[name]
                raise UserError(
                    f"the run in {self._output} was started {what}; bring them "
                    "back to resume it, or --resume_with_changes true, or choose another --output"
                )
        done = extra["images"] // self.settings.batch_size
        steps = len(self.run.train_loader) // self.settings.grad_accumulation
        if done > steps:
            raise UserError(
                f"{folder} lies {done} steps into an epoch, which now has {steps}; resume it with the images and the "
                "--batch_size it had, or remove it to continue from the one before it, or choose another --output"
            )

    def _own_progress(self, saved: list[dict[str, Any]], update: int) -> EpochProgress:
        """This process's part of the epoch's progress; if there were more or fewer processes, the mean loss."""
        if len(saved) == self.accelerator.num_processes:
            return EpochProgress(**saved[self.accelerator.process_index] | {"update": update})
        loss = sum(part["loss"] for part in saved) / len(saved)
        return EpochProgress(**saved[0] | {"update": update, "loss": loss})


def _digest(*labels: np.ndarray) -> str:
    """A hash of the labels in their order."""
    return hashlib.sha256(b"|".join(one.tobytes() for one in labels)).hexdigest()


def _words(position: Position) -> str:
    return f"epoch {position.epoch}" + (f" and {position.update} steps" if position.update else "")
