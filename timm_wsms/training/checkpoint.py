"""Checkpoints to resume from: safetensors and JSON, no pickle; complete or absent; damage is detected before use.

A checkpoint holds no random state: whatever is random in a step is seeded by (seed, epoch, step, process), order and
augmentation by (seed, epoch, image), all known from the run's position.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load
from torch import nn
from torch.optim import Optimizer

from timm_wsms.errors import UserError
from timm_wsms.files import atomic_folder, remove, remove_left_overs, write_tensors
from timm_wsms.foreign import understood
from timm_wsms.training.optimizer_state import flatten_state, load_optimizer, unflatten_state

MANIFEST, STATE = "manifest.json", "state.json"


class Position(NamedTuple):
    """How far a run has come, which is also a checkpoint's name.

    Attributes:
        epoch: epochs done.
        update: optimizer steps done in the epoch after them.
    """

    epoch: int
    update: int = 0

    def __str__(self) -> str:
        return f"epoch-{self.epoch:04d}" + (f"-step-{self.update:06d}" if self.update else "")

    @classmethod
    def parse(cls, name: str) -> "Position | None":
        """Reads a folder's name; None if it is not a checkpoint's."""
        found = re.fullmatch(r"epoch-(\d+)(?:-step-(\d+))?", name)
        return cls(int(found[1]), int(found[2] or 0)) if found else None


def save_run_state(
    checkpoints: Path,
    position: Position,
    model: nn.Module,
    optimizer: Optimizer,
    ema: nn.Module | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `<checkpoints>/<position>/`.

    Args:
        checkpoints: folder for all of them.
        position: how far the run has come.
        model: without wrappers.
        optimizer: without wrappers.
        ema: the averaged model, if there is one.
        extra: anything else that JSON can hold, e.g. the gradient scaler's state.

    Returns:
        The new checkpoint's folder.

    Raises:
        OSError: the disk is full, for instance. Existing checkpoints stay whole.
    """
    folder = checkpoints / str(position)
    tensors: dict[str, Any] = {}
    tree = flatten_state(optimizer.state_dict(), tensors)
    files = {"model.safetensors": model.state_dict(), "optimizer.safetensors": tensors}
    if ema is not None:
        files["ema.safetensors"] = ema.state_dict()
    kind = type(optimizer).__name__
    state = json.dumps({**position._asdict(), "kind": kind, "optimizer": tree, "extra": extra or {}})
    with atomic_folder(folder) as temporary:
        sums = {name: write_tensors(temporary / name, content) for name, content in files.items()}
        (temporary / STATE).write_text(state, encoding="utf-8")
        sums[STATE] = hashlib.sha256(state.encode()).hexdigest()
        (temporary / MANIFEST).write_text(json.dumps(sums, separators=(",", ":")), encoding="utf-8")
    return folder


def load_run_state(
    folder: Path, model: nn.Module, optimizer: Optimizer, ema: nn.Module | None = None
) -> dict[str, Any]:
    """Restores a run to where `save_run_state` was called.

    Args:
        folder: the checkpoint.
        model: without wrappers.
        optimizer: without wrappers, as the settings built it; keeps its hyperparameters, and gets its state back.
        ema: the averaged model, if there is one.

    Returns:
        `extra`.

    Raises:
        UserError: the checkpoint is damaged, or belongs to another model or optimizer.
    """
    files = verified(folder)
    if (ema is not None) != ("ema.safetensors" in files):
        raise UserError(
            f"{folder} was written {'without' if ema is not None else 'with'} ema_decay; choose another --output"
        )
    with understood(folder / STATE, "choose another --output"):  # its checksum is right, but whose is it?
        state = json.loads(files[STATE])
        try:
            if (kind := type(optimizer).__name__) != state.get("kind", kind):
                raise ValueError(f"it holds the state of {state['kind']}, not of {kind}")
            model.load_state_dict(load(files["model.safetensors"]))
            if ema is not None:
                ema.load_state_dict(load(files["ema.safetensors"]))
            load_optimizer(optimizer, unflatten_state(state["optimizer"], load(files["optimizer.safetensors"])))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{folder} does not fit these settings ({error}); choose another --output") from error
        return dict(state["extra"])


def verified(folder: Path) -> dict[str, bytes]:
    """Reads a checkpoint's files.

    Returns:
        Their content by name.

    Raises:
        UserError: one is missing or has changed; names it.
    """
    name = MANIFEST
    try:
        sums = json.loads((folder / MANIFEST).read_bytes())
        files = {}
        for name in sorted({"model.safetensors", "optimizer.safetensors", STATE} | sums.keys()):
            files[name] = (folder / name).read_bytes()
            if hashlib.sha256(files[name]).hexdigest() != sums[name]:
                raise ValueError("its SHA-256 differs")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / name} is damaged or missing") from error
    return files


def newest_whole(output: Path) -> tuple[Path | None, list[str]]:
    """Finds the newest undamaged checkpoint of a run, and renames the damaged ones (`<name>.damaged`).

    Those that an earlier resume renamed are then removed, or a long run would fill the disk with them.

    Returns:
        Its folder, or None if there is none; and what is wrong with the newer ones, a line each.

    Raises:
        UserError: there are checkpoints, but none of them is whole.
    """
    damaged: dict[Path, str] = {}
    for folder in reversed(all_of(output)):
        try:
            verified(folder)
        except UserError as error:
            damaged[folder] = str(error)
            continue
        if damaged:
            for old in (output / "checkpoints").glob("*.damaged"):
                shutil.rmtree(old, ignore_errors=True)
        for bad in damaged:
            bad.rename(bad.with_name(f"{bad.name}.damaged"))
        return folder, list(damaged.values())
    if damaged:
        raise UserError(f"no checkpoint is intact: {'; '.join(damaged.values())}; choose another --output")
    return None, []


def prune(checkpoints: Path, keep: int, also: list[Position]) -> None:
    """Removes all checkpoints but the newest `keep` and those at `also`. Call it when the newest is on the disk."""
    for folder in all_of(checkpoints.parent)[:-keep]:
        if Position.parse(folder.name) not in also:
            remove(folder)
    remove_left_overs(checkpoints)


def all_of(output: Path) -> list[Path]:
    """All checkpoints in a run's output folder, oldest first."""
    found = (output / "checkpoints").iterdir() if (output / "checkpoints").is_dir() else ()
    positions = {path: Position.parse(path.name) for path in found}
    return sorted((path for path in positions if positions[path]), key=lambda path: positions[path] or Position(0))


def newest(output: Path) -> Path | None:
    """Returns the newest checkpoint's folder in a run's output folder, damaged or not, or None."""
    return next(iter(reversed(all_of(output))), None)


def _holds_run(folder: Path) -> bool:
    """Whether a folder holds something of a run that would be lost: a checkpoint, damaged or not, or a model.

    A run that ended before its first checkpoint leaves settings and perhaps metrics, which cannot be resumed.
    """
    return (folder / "model").exists() or any((folder / "checkpoints").glob("epoch-*"))


def check_output(output: Path, resume: str) -> None:
    """Checks that a run may write to a folder, without creating it.

    Args:
        output: the folder.
        resume: `auto` or `no`, as in the settings.

    Raises:
        UserError: it holds a run that is not to be resumed, or nothing can be written there.
    """
    if resume == "no" and any(_holds_run(folder) for folder in (output, output / "baseline")):
        raise UserError(f"{output} already holds a run; continue it with --resume auto, or choose another --output")
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"nothing can be written to {output}, since {there} is not a folder, not yours, or on a read-only disk; "
            "choose another --output"
        )
