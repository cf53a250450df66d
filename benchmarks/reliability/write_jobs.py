"""What the package writes, as jobs that can be repeated: each starts from a folder and leaves it with new content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from timm_wsms.files import atomic_folder, atomic_write_text
from timm_wsms.training import checkpoint
from timm_wsms.training.checkpoint import Position
from timm_wsms.training.checkpoint_folder import save_model_folder


@dataclass(frozen=True)
class Job:
    """Something that is written.

    Attributes:
        prepare: Brings a folder to the state before.
        write: Writes into it, as the training script or a command does.
        read: What a reader finds there, SHA-256 by path.
    """

    prepare: Callable[[Path], None]
    write: Callable[[Path], None]
    read: Callable[[Path], dict[str, str]]


def jobs() -> dict[str, Job]:
    """The jobs by name. Their networks are built once, so that a job takes milliseconds."""
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=2).eval()
    optimizer = torch.optim.AdamW(model.parameters())
    example = torch.rand(2, 3, 32, 32)
    model(example).sum().backward()
    optimizer.step()
    config = timm.data.resolve_model_data_config(model)

    def save(number: int) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            checkpoint.save_run_state(
                folder / "checkpoints", Position(number), model, optimizer, extra={"metrics": [number]}
            )
            checkpoint.prune(folder / "checkpoints", 1, [])

        return write

    def save_model(number: int) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            with atomic_folder(folder / "model") as temporary:
                save_model_folder(model, temporary, config, [f"class {number}", "other"], example)

        return write

    def write_text(number: int) -> Callable[[Path], None]:
        return lambda folder: atomic_write_text(folder / "metrics.jsonl", f'{{"epoch": {number}}}\n' * 1000)

    return {
        "checkpoint": Job(save(1), save(2), newest),
        "model folder": Job(save_model(1), save_model(2), visible),
        "text file": Job(write_text(1), write_text(2), visible),
    }


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by its relative path; an empty string for a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def visible(folder: Path) -> dict[str, str]:
    """The content without what is being written: its name, or its folder's, starts with a dot."""
    return {p: digest for p, digest in content(folder).items() if not any(x.startswith(".") for x in Path(p).parts)}


def newest(folder: Path) -> dict[str, str]:
    """The newest checkpoint's content. The one before it may be there too, or have gone."""
    found = checkpoint.newest(folder)
    return content(found) if found else {}
