"""What a run leaves behind: checkpoints to go on from, and a folder that timm loads. Safetensors and JSON, no pickle.

Every folder is written under another name beside its place, brought to the disk, and renamed, so that under its own
name there is never half of it. A checkpoint holds no random state: dropout is seeded by (seed, epoch, process), order
and augmentation by (seed, epoch, image), all known from the epoch.
"""

import copy
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from timm.models._hub import save_config_for_hf
from torch import nn
from torch.optim import Optimizer

from timm_wsms.errors import UserError
from timm_wsms.training.faults import explain
from timm_wsms.training.states import join, split

KEEP = 2  # checkpoints; the older one is there in case the newer turns out damaged
STATE = "state.json"
RUN_FILES = ("settings.yaml", "metrics.jsonl", "checkpoints", "model", "baseline")


def save_model_folder(
    model: nn.Module, folder: Path, data_config: Mapping[str, Any], class_names: list[str], example: torch.Tensor
) -> None:
    """Writes what `timm.create_model("local-dir:<folder>", pretrained=True)` loads into an empty folder.

    `test/tensors.safetensors` in it holds `input`, `features`, `pre_logits` and `logits`, in float32 and eval mode on
    the CPU, for whoever wants to check that a loaded model still computes the same.

    Args:
        model: without wrappers; it is left as it is.
        folder: where, usually from `written_beside`.
        data_config: the preprocessing the model was trained with, as `timm.data.resolve_data_config` returns it.
        class_names: one for each logit.
        example: images (b, channels, height, width) for the test tensors.
    """
    _write_tensors(folder / "model.safetensors", model.state_dict())
    save_config_for_hf(
        model,
        str(folder / "config.json"),
        model_config={"label_names": list(class_names)},
        data_config=dict(data_config),
    )
    (folder / "test").mkdir()
    _write_tensors(folder / "test" / "tensors.safetensors", reference_tensors(model, example))


def reference_tensors(model: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns `input`, `features`, `pre_logits` and `logits` of a float32 pass in eval mode on the CPU.

    Features that are no single tensor are left out.
    """
    # In the memory order of a model that was just loaded; another may choose other kernels, with other roundings.
    model = copy.deepcopy(model).to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()
    with torch.no_grad():
        features = model.forward_features(images.cpu())
        tensors = {
            "input": images,
            "features": features,
            "pre_logits": model.forward_head(features, pre_logits=True),
            "logits": model.forward_head(features),
        }
    # Copies, since pre-logits may be a view of the features.
    return {name: tensor.clone() for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}


def save_run_state(
    checkpoints: Path,
    epoch: int,
    model: nn.Module,
    optimizer: Optimizer,
    ema: nn.Module | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `<checkpoints>/epoch-NNNN/`, then removes all but the newest two.

    Args:
        checkpoints: folder for them all.
        epoch: epochs done.
        model: without wrappers.
        optimizer: without wrappers.
        ema: the averaged model, if there is one.
        extra: anything else that JSON can hold, e.g. the gradient scaler's state.

    Returns:
        The new checkpoint's folder.

    Raises:
        UserError: the disk is full. The checkpoints that were there are whole.
    """
    folder = checkpoints / f"epoch-{epoch:04d}"
    tensors: dict[str, torch.Tensor] = {}
    tree = split(optimizer.state_dict(), tensors)
    with written_beside(folder) as temporary:
        files = {"model.safetensors": model.state_dict(), "optimizer.safetensors": tensors}
        if ema is not None:
            files["ema.safetensors"] = ema.state_dict()
        digests = {name: _write_tensors(temporary / name, content) for name, content in files.items()}
        state = {"epoch": epoch, "sha256": digests, "optimizer": tree, "extra": dict(extra or {})}
        (temporary / STATE).write_text(json.dumps(state), encoding="utf-8")
    for old in _all(checkpoints)[:-KEEP]:
        shutil.rmtree(old)
    return folder


def load_run_state(
    folder: Path, model: nn.Module, optimizer: Optimizer, ema: nn.Module | None = None
) -> tuple[int, dict[str, Any]]:
    """Brings a run back to where `save_run_state` was called.

    Returns:
        The epochs done, and `extra`.

    Raises:
        UserError: the checkpoint is damaged, or another model's or optimizer's.
    """
    state = read_state(folder)
    for name, digest in state["sha256"].items():
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise _damaged(folder, name)
    if (ema is not None) != ("ema.safetensors" in state["sha256"]):
        raise UserError(
            f"{folder} was written {'without' if ema is not None else 'with'} ema_decay; choose another --output"
        )
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
        if ema is not None:
            ema.load_state_dict(load_file(folder / "ema.safetensors"))
        optimizer.load_state_dict(join(state["optimizer"], load_file(folder / "optimizer.safetensors")))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{folder} does not fit these settings ({error}); choose another --output") from error
    _like_parameters(optimizer)
    return state["epoch"], state["extra"]


def read_state(folder: Path) -> dict[str, Any]:
    """Returns a checkpoint's state.json.

    Raises:
        UserError: it is damaged or missing.
    """
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, STATE) from error


def newest(output: Path) -> Path | None:
    """Returns the newest checkpoint's folder in a run's output folder, or None."""
    return next(iter(reversed(_all(output / "checkpoints"))), None)


def check_output(output: Path, resume: str) -> None:
    """Checks that a run may write to a folder, without creating it.

    Args:
        output: the folder.
        resume: `auto` or `no`, as in the settings.

    Raises:
        UserError: it holds a run that is not to be resumed, or nothing can be written there.
    """
    if resume == "no" and any((output / name).exists() for name in RUN_FILES):
        raise UserError(f"{output} already holds a run; go on with it by --resume auto, or choose another --output")
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"nothing can be written to {output}, since {there} is no folder or not yours; choose another --output"
        )


def _all(checkpoints: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    found = checkpoints.glob("epoch-*") if checkpoints.is_dir() else []
    whole = [path for path in found if re.fullmatch(r"epoch-\d+", path.name)]
    return sorted(whole, key=lambda path: int(path.name.removeprefix("epoch-")))


def _damaged(folder: Path, name: str) -> UserError:
    return UserError(f"{folder / name} is damaged or missing; remove {folder} and go on with --resume auto")


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Writes tensors, made contiguous (safetensors refuses channels-last ones), and returns the file's SHA-256."""
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    path.write_bytes(data)  # not `save_file`, whose own error hides that the disk is full
    return hashlib.sha256(data).hexdigest()


def _like_parameters(optimizer: Optimizer) -> None:
    """Gives states the memory order of their parameters (channels last, say), which files do not keep."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


@contextmanager
def written_beside(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that takes `folder`'s place once it is whole and on the disk."""
    temporary, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _fsync(path)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        _fsync(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        if isinstance(error, OSError):
            error.filename = error.filename or str(folder)  # writing to an open file names none
            if message := explain(error):
                raise UserError(message) from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
