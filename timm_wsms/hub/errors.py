"""What went wrong at the Hugging Face Hub, in one line that names the remedy."""

import errno
import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from timm_wsms.errors import UserError

WRITE = "make one with write access to it at https://huggingface.co/settings/tokens, then `hf auth login`"


def explain(error: BaseException, repo: str) -> str | None:
    """Returns the line, or None for what has nothing to do with the Hub.

    Args:
        error: From `huggingface_hub`.
        repo: The requested repo.
    """
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__  # the client looked into its cache after an answer it did not like
    if isinstance(error, GatedRepoError):
        return f"{repo} asks for consent: accept its terms on its page, then `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such revision; see its page for branches, tags and commits"
    if isinstance(error, LocalEntryNotFoundError):
        return f"{repo} is not in the cache and cannot be reached; connect once (without HF_HUB_OFFLINE)"
    if isinstance(error, EntryNotFoundError):
        name = str(getattr(getattr(error, "response", None), "url", "")).rpartition("/")[2] or "one of its files"
        return f"{repo} has no {name}, so it holds no model of this package; pickled weights are not read"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no {repo}, or it is private and the token may not see it; fix the name, or `hf auth login`"
    if isinstance(error, HFValidationError):
        return f"{repo!r} is not a name on the Hub; it must be owner/name"
    if isinstance(error, HfHubHTTPError):
        return _of_status(error, repo)
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo} cannot be reached offline; unset HF_HUB_OFFLINE"
    if isinstance(error, HTTPError):
        return f"the connection for {repo} failed ({_short(error)}); check the network and run it again"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full; free some space, or set HF_HOME to a folder on another disk, and load {repo} again"
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return f"a file of {repo} arrived incomplete; run it again"
    return None


def _of_status(error: HfHubHTTPError, repo: str) -> str:
    status = error.response.status_code
    if status == 401:
        return "the Hub does not know this token; `hf auth login` again, or correct HF_TOKEN"
    if status == 403:
        return f"the token may not write to {repo}; {WRITE}"
    if status == 429:
        wait = error.response.headers.get("retry-after")
        return f"too many requests to the Hub; run it again in {f'{wait} s' if wait else 'some minutes'}"
    if status == 412:
        return f"{repo} has changed meanwhile; look at --dry-run, then run it again"
    if status >= 500:
        return f"the Hub failed each time (HTTP {status}); {repo} is unchanged, run it again later"
    return f"the Hub refuses this for {repo}: {_short(error)}"


def _short(error: BaseException) -> str:
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return textwrap.shorten(said, 160, placeholder=" …")


@contextmanager
def in_one_line(repo: str) -> Iterator[None]:
    """Raises a `UserError` for what `explain` knows; other errors pass.

    Raises:
        UserError: The one line.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, json.JSONDecodeError):
            raise UserError(f"the server for {repo} is not a Hub, or has a fault; check HF_ENDPOINT") from error
        message = None if isinstance(error, UserError) else explain(error, repo)
        if message is None:
            raise
        raise UserError(message) from error
