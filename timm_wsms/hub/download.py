"""Files from the Hugging Face Hub, with checksums verified, which `huggingface_hub` does not do."""

import hashlib
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from timm_wsms.errors import UserError

CHUNK = 2**20  # bytes


def fetch(hub_id: str, filename: str, cache_dir: Any = None, sha256: str | None = None) -> Path:
    """Downloads a file, or finds it in the cache, and verifies it.

    The client's cache names a file by the sum that the Hub gave for it: SHA-256 for large files, git's own for others.

    Args:
        hub_id: `owner/name` or `owner/name@revision`.
        filename: In the repo.
        cache_dir: Instead of `HF_HUB_CACHE`.
        sha256: The file's checksum, if that is known from elsewhere.

    Raises:
        UserError: The file differs from the Hub's. It has been removed, so that the next attempt downloads it again.
    """
    repo, _, revision = hub_id.partition("@")
    path = Path(hf_hub_download(repo, filename, revision=revision or None, cache_dir=cache_dir))
    _check(path, hub_id, sha256)
    return path


def check_cached(hub_id: str, filename: str, cache_dir: Any = None) -> None:
    """Checks a file that has been downloaded already; one that is not in the cache passes."""
    repo, _, revision = hub_id.partition("@")
    path = try_to_load_from_cache(repo, filename, cache_dir=cache_dir, revision=revision or None)
    if isinstance(path, str):
        _check(Path(path), hub_id, None)


def file_sum(path: Path, kind: str) -> str:
    """A file's sum in hexadecimal digits: `sha256`, or `git`, the SHA-1 of its length and content."""
    found = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _check(path: Path, hub_id: str, sha256: str | None) -> None:
    blob = path.resolve()
    # On systems without symbolic links the cache does not tell; then only a known checksum can be verified.
    expected = sha256 or (blob.name if blob.parent.name == "blobs" else None)
    if expected is None or file_sum(blob, "sha256" if len(expected) == 64 else "git") == expected:
        return
    path.unlink()
    blob.unlink(missing_ok=True)
    raise UserError(f"{path.name} of {hub_id} is corrupted: its sum is not the Hub's. It is removed; download it again")
