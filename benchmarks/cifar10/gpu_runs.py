"""Runs of the table: trained alternately, with checkpoints, and each with a record once it is finished."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.cifar10.gpu_data import Augmenter
from benchmarks.cifar10.gpu_forms import BATCH, EPOCHS, Form, learning_rates
from benchmarks.cifar10.gpu_timing import Plan, Setting
from timm_wsms.errors import UserError
from timm_wsms.files import atomic_write_text

# In this order: the two that the paper compares, side by side; then one after the other, each if it fits.
ROUNDS = (("plain", "WSMS 1x1"), ("mean",), ("WSMS none",), ("WSMS 3x3",), ("MS 1x1",))
BACK = 7, 16 * 2**20, 62 * 2**20  # checkpoints that may come back from the GPU's machine, bytes of each and of all
PAPERS = "the paper's"


def agenda(pairs: int, together: int) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """(forms, seeds) of every round: all pairs first, `together` at a time."""
    for start in range(0, pairs, together):
        yield ROUNDS[0], (*range(start, min(pairs, start + together)),)
    for forms in ROUNDS[1:]:
        yield forms, (*range(min(pairs, together)),)


class Store:
    """What is kept between calls: plan, timings, records of finished runs in `table2.json`; checkpoints of the others.

    Args:
        folder: On the machine that trains.
        out: Where copies come back from, $OUT; None: there is no such folder.
    """

    def __init__(self, folder: Path, out: Path | None = None):
        self.folder, self.out = folder, out
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "table2.json"
        self.report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": []}

    def write(self) -> None:
        """Saves the report, and copies it and as many checkpoints as may come back, those of the first seeds first."""
        atomic_write_text(self.folder / "table2.json", json.dumps(self.report, indent=1, ensure_ascii=False) + "\n")
        if self.out is None:
            return
        shutil.copyfile(self.folder / "table2.json", self.out / "table2.json")
        most, largest, room = BACK
        paths = sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stem.rpartition("_seed")[::-1])
        kept = []
        for path in paths:
            size = path.stat().st_size
            if size <= largest and size <= room and len(kept) < most:
                room -= size
                kept.append(path.name)
                shutil.copyfile(path, self.out / path.name)
        for path in self.out.glob("*.safetensors"):
            if path.name not in kept:
                path.unlink()

    def path(self, form: Form, seed: int) -> Path:
        return self.folder / f"{form.slug}_seed{seed}.safetensors"

    def finished(self, form: Form, seed: int) -> bool:
        return any((run["form"], run["seed"]) == (form.name, seed) for run in self.report["runs"])


class Job:
    """A form's seeds that are trained at once.

    Args:
        form: Of the table.
        seeds: Its networks.
        plan: Variant and number of epochs.
        setting: Device, batch.
        store: Has their checkpoints if they were begun.

    Raises:
        UserError: The checkpoints are not of one epoch, or of another schedule.
    """

    def __init__(self, form: Form, seeds: Sequence[int], plan: Plan, setting: Setting, store: Store):
        self.form, self.seeds, self.plan, self.setting, self.store = form, tuple(seeds), plan, setting, store
        self.epoch, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.groups = setting.groups(form, self.seeds, plan.variant)
        self.places = [(group, index) for group in self.groups for index in range(len(group.seeds))]
        self.rates = learning_rates(plan.epochs)
        self._resume()

    def _resume(self) -> None:
        told = set()
        for seed, (group, index) in zip(self.seeds, self.places, strict=True):
            path = self.store.path(self.form, seed)
            if not path.exists():
                told.add(("0", str(self.plan.epochs), "0"))
                continue
            with safe_open(path, "pt") as checkpoint:
                told.add(tuple(checkpoint.metadata()[key] for key in ("epoch", "epochs", "seconds")))
                group.load(index, {key: checkpoint.get_tensor(key) for key in checkpoint.keys()})  # noqa: SIM118
        if len(told) > 1 or {epochs for _, epochs, _ in told} != {str(self.plan.epochs)}:
            raise UserError(
                f"the checkpoints of {self.form.name} in {self.store.folder} are of several epochs or another "
                "schedule; remove them, or name another --state"
            )
        ((epoch, _, seconds),) = told
        self.epoch, self.seconds = int(epoch), float(seconds)

    def train_epoch(self, augmenter: Augmenter) -> float:
        """Trains one more epoch; gives the seconds it took."""
        began = time.perf_counter()
        self.setting.wait()
        for group in self.groups:
            group.begin_epoch(augmenter, self.epoch + 1, self.rates[self.epoch])
        for _ in range(self.setting.steps):
            for group in self.groups:
                group.step()
        self.setting.wait()
        self.losses = [loss for group in self.groups for loss in group.train_loss()]
        self.epoch += 1
        took = time.perf_counter() - began
        self.seconds += took
        return took

    def save(self) -> None:
        told = {"epoch": str(self.epoch), "epochs": str(self.plan.epochs), "seconds": f"{self.seconds:.1f}"}
        for seed, (group, index) in zip(self.seeds, self.places, strict=True):
            path = self.store.path(self.form, seed)
            save_file(group.state(index), path.with_suffix(".new"), metadata=told)
            path.with_suffix(".new").replace(path)

    def finish(self, images: torch.Tensor, labels: np.ndarray, **more: Any) -> None:
        """Evaluates every seed, records it and removes its checkpoint."""
        usual = self.plan.epochs == EPOCHS and self.setting.batch == BATCH
        for seed, loss, (group, index) in zip(self.seeds, self.losses, self.places, strict=True):
            right = group.predict(index, images) == labels
            self.store.report["runs"].append(
                {
                    "form": self.form.name,
                    "seed": seed,
                    "model": self.form.model,
                    "model_kwargs": self.form.kwargs,
                    "schedule": PAPERS if usual else f"{self.plan.epochs} epochs of batch {self.setting.batch}",
                    "test_error": round(100 * (1 - right.mean()), 3),
                    "test_images": len(labels),
                    "recognized": base64.b64encode(np.packbits(right).tobytes()).decode(),
                    "train_loss": round(loss, 5),
                    "updates": self.plan.epochs * self.setting.steps,
                    "seconds_of_all_seeds": round(self.seconds, 1),
                    "seeds_at_once": len(self.seeds),
                    "variant": str(self.plan.variant),
                    **more,
                }
            )
            print(
                f"{self.form.name}, seed {seed}: {self.store.report['runs'][-1]['test_error']:.2f} % error", flush=True
            )
            self.store.path(self.form, seed).unlink(missing_ok=True)


def train_alternately(
    jobs: Sequence[Any],
    epochs: int,
    train: Callable[[Any], float],
    save: Callable[[], None],
    left: Callable[[], float],
    whole: bool,
    every: float = 30.0,
) -> bool:
    """Trains an epoch of each job in turn, so that all end together; saves from time to time, and before it stops.

    Args:
        jobs: Of which each has an `epoch`.
        epochs: Of each.
        train: One epoch of one job; gives the seconds it took.
        save: All jobs.
        left: Seconds that there are.
        whole: Stop after the first epochs if not all of them will fit.
        every: Seconds between checkpoints.

    Returns:
        Whether all are finished.
    """
    saved, took, asked = time.perf_counter(), {}, False
    while unfinished := [job for job in jobs if job.epoch < epochs]:
        job = min(unfinished, key=lambda job: job.epoch)  # of equals the first
        if left() < 2 * max(took.values(), default=0) + 5:
            save()
            return False
        took[id(job)] = train(job)
        if len(took) == len(jobs) and not asked:
            asked = True
            needs = sum((epochs - job.epoch) * took[id(job)] for job in jobs)
            print(f"{needs:.0f} s for the remaining epochs, {left():.0f} s are left", flush=True)
            if whole and needs > left() - 5:
                return False
        if time.perf_counter() - saved > every:
            save()
            saved = time.perf_counter()
    return True
