"""Trained models by name."""

import re
import textwrap
from pathlib import Path
from typing import Any

import timm

from timm_wsms.cli_errors import is_out_of_memory
from timm_wsms.errors import UserError
from timm_wsms.registry.why_not import check_name

LOCAL = "local-dir:"
FILES = ("config.json", "model.safetensors")


def timm_name(name: str) -> str:
    """What `timm.create_model` calls a model, which needs neither network nor weights.

    Args:
        name: a checkpoint folder, with or without `local-dir:`; `hf-hub:owner/name`; or a timm model name, with or
            without a pretrained tag, which takes precedence over a folder of the same name.

    Raises:
        UserError: there is no such model, or the folder does not hold one; the message names the remedy.
    """
    folder = Path(name.removeprefix(LOCAL)).expanduser()
    if name.startswith(LOCAL) or (folder.is_dir() and not timm.is_model(name)):
        missing = [file for file in FILES if not (folder / file).is_file()]
        if missing:
            inside = f", such as {folder / 'model'}" if (folder / "model" / FILES[0]).is_file() else ""
            raise UserError(f"{folder} has no {' and no '.join(missing)}; name a checkpoint folder{inside}")
        return f"{LOCAL}{folder}"
    if ":" not in name and "/" in name:
        raise UserError(f"there is no folder {name}; fix the path, or write hf-hub:{name} for a model on the Hub")
    check_name(name)
    return name


def file_name(name: str) -> str:
    """A model's name made fit for a file or a folder."""
    return re.sub(r"[^\w.-]+", "_", name)


def load_model(name: str, **kwargs: Any) -> Any:
    """Builds a timm model with its trained weights.

    Args:
        name: as `timm_name` takes it.
        kwargs: keyword arguments of the model.

    Raises:
        UserError: it cannot be loaded; says why.
    """
    if "num_classes" in kwargs:  # timm would replace the trained head by a new, untrained one
        raise UserError("a trained model's weights set its number of classes; leave out --model_kwargs.num_classes")
    try:
        return timm.create_model(timm_name(name), pretrained=True, **kwargs)
    except Exception as error:  # the Hub, the files and the networks may raise anything, all about this model
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" …")
        raise UserError(
            f"{name} cannot be loaded; check its weights, the model_kwargs and, for the Hub, the network ({reason})"
        ) from error
