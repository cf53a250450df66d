"""The Hub as publish.py and verify.py see it: what a repo holds, and calls that are retried."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, RepositoryNotFoundError

T = TypeVar("T")
TRIES = 6
LONGEST_WAIT = 300  # seconds


@dataclass(frozen=True)
class Remote:
    """A repo at one commit.

    Attributes:
        commit: 40 hexadecimal digits.
        sums: File → SHA-256 of large files, git's sum of others.
        sizes: File → bytes.
        private: Whether only its owner sees it.
    """

    commit: str
    sums: dict[str, str]
    sizes: dict[str, int]
    private: bool


def look(api: HfApi, repo: str, revision: str | None = None) -> Remote:
    """What a repo holds.

    Raises:
        HfHubHTTPError: As `HfApi.model_info`.
    """
    info = retried(lambda: api.model_info(repo, revision=revision, files_metadata=True))
    files = info.siblings or []
    sums = {file.rfilename: str(file.lfs.sha256 if file.lfs else file.blob_id) for file in files}
    return Remote(str(info.sha), sums, {file.rfilename: file.size or 0 for file in files}, bool(info.private))


def look_if_there(api: HfApi, repo: str) -> Remote | None:
    """The same, or None for a repo that is not there, or that the token may not see."""
    try:
        return look(api, repo)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None


def retried(call: Callable[[], T]) -> T:
    """Calls again after 429, 5xx and lost connections, waiting 1, 2, 4 … s, or as long as the Hub says.

    For the calls of `huggingface_hub` that do not retry on their own: those about repos, commits and tags. Those for
    files do.
    """
    for number in range(TRIES - 1):
        try:
            return call()
        except (HTTPError, json.JSONDecodeError) as error:  # a page instead of JSON, while the Hub is under maintenance
            wait = _wait(error, 2.0**number)
            if wait is None or wait > LONGEST_WAIT:
                raise
            print(f"the Hub did not answer as it should; trying again in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)
    return call()


def _wait(error: Exception, otherwise: float) -> float | None:
    """Seconds to wait before the next try; None if retrying is pointless."""
    if not isinstance(error, HfHubHTTPError):
        return otherwise
    status = error.response.status_code
    if status != 429 and status < 500:
        return None
    asked = error.response.headers.get("retry-after", "")
    return float(asked) if asked.isdigit() else otherwise
