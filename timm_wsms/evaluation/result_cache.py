"""Results kept on disk, so that what was computed once is read the next time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import nn

from timm_wsms.data import Split
from timm_wsms.errors import UserError
from timm_wsms.files import atomic_folder, write_tensors

Arrays = dict[str, np.ndarray]


def cached(name: str, key: Mapping[str, Any], compute: Callable[[], Arrays], folder: str | None = None) -> Arrays:
    """What `compute` returns; the next time, the same from disk.

    It is kept where the Hub's library keeps such files, in `$HF_ASSETS_CACHE/timm-wsms/<name>/<hash of key>`. If that
    variable is not set, the folder is `$HF_HOME/assets`, `$XDG_CACHE_HOME/huggingface/assets` or
    `~/.cache/huggingface/assets`.

    Args:
        name: Name of this kind of result.
        key: All that the results depend on, for JSON. The versions of this package and of timm are added.
        compute: Returns arrays by name.
        folder: Keep them in this folder instead of `$HF_ASSETS_CACHE`; "off": neither read nor keep anything.

    Raises:
        UserError: The folder cannot be written to.
    """
    if folder == "off":
        return compute()
    whole = {**key, "versions": {package: version(package) for package in ("timm-wsms", "timm")}}
    place = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]
    try:
        path = cached_assets_path("timm-wsms", name, place, assets_dir=folder) / "arrays"
    except (OSError, ValueError) as error:  # a file in its place, for instance
        raise UserError(f"the cache cannot be used ({error}); name another folder, or --cache off") from error
    with suppress(FileNotFoundError, SafetensorError):  # not there, or damaged
        return load_file(path / "arrays.safetensors")
    arrays = compute()
    try:
        with atomic_folder(path) as temporary:
            write_tensors(temporary / "arrays.safetensors", {key: torch.tensor(array) for key, array in arrays.items()})
            (temporary / "key.json").write_text(json.dumps(whole, indent=2), encoding="utf-8")
    except OSError as error:
        raise UserError(f"the cache cannot be written ({error}); name another folder, or --cache off") from error
    return arrays


def model_hash(model: nn.Module) -> str:
    """SHA-256 of what a model computes: its weights and running statistics, and its modules."""
    digest = hashlib.sha256(str(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def settings_hash(model: nn.Module) -> str:
    """SHA-256 of what a model computes besides its weights, such as its pyramid or its pooling: of all its modules'
    attributes that are numbers, words, or lists of these.
    """
    digest = hashlib.sha256()
    for path, module in model.named_modules():
        plain = {name: value for name, value in vars(module).items() if name != "training" and _is_plain(value)}
        digest.update(json.dumps([path, type(module).__qualname__, plain], sort_keys=True).encode())
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def data_fingerprint(split: Split) -> str:
    """SHA-256 of a split's images and labels: of the pixels if they are kept decoded; for files, of their sizes
    and modification times; for other images, of `datasets`' own fingerprint.
    """
    digest = hashlib.sha256(split.labels.tobytes())
    digest.update(json.dumps([split.class_names, split.value_range]).encode())
    if split.pixels is not None:
        digest.update(str(split.pixels.shape).encode())
        digest.update(split.pixels.tobytes())
        return digest.hexdigest()
    assert split.rows is not None
    # private, but the only name that `datasets` has for a table's content short of reading it all
    digest.update(split.rows._fingerprint.encode())
    files = (split.undecoded(place) for place in range(len(split)))
    for path in (value["path"] for value in files if value["bytes"] is None):
        if os.path.exists(path):
            digest.update(f"{path} {os.stat(path).st_size} {os.stat(path).st_mtime_ns}".encode())
    return digest.hexdigest()
