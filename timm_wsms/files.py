"""Files and folders that exist whole or not at all, whenever the process is killed.

Everything is written under another name in the same folder, flushed to disk, and renamed.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save

NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP)  # what some network and FUSE file systems say to `fsync` of a folder


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that replaces `folder` once it is whole and on disk.

    Raises:
        OSError: the disk is full, for instance; names the file. What was there before is still there.
    """
    temporary, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():  # killed between the two renamings
        old.rename(folder)
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
        _name(error, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove(folder: Path) -> None:
    """Removes a folder; its name disappears at once."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_left_overs(parent: Path) -> None:
    """Removes what killed processes have left half written or half removed in a folder."""
    for left_over in [*parent.glob(".*.new"), *parent.glob(".*.gone")]:
        shutil.rmtree(left_over, ignore_errors=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Writes a file, or replaces it.

    Raises:
        OSError: the disk is full, for instance; names the file. What was there before is there still.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        _fsync(temporary)
        temporary.rename(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(error, path)
        raise


def _name(error: BaseException, path: Path) -> None:
    """Names the file being written: an error of writing to an open file names none."""
    if isinstance(error, OSError):
        error.filename = error.filename or str(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def tensor_bytes(tensors: Mapping[str, torch.Tensor], **metadata: str) -> bytes:
    """A safetensors file's content; the tensors are made contiguous, since safetensors refuses channels-last ones."""
    return save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt", **metadata}
    )


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], **metadata: str) -> str:
    """Writes tensors and returns the file's SHA-256."""
    data = tensor_bytes(tensors, **metadata)
    path.write_bytes(data)  # not `save_file`, whose own error hides that the disk is full
    return hashlib.sha256(data).hexdigest()
