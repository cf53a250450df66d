"""What a user reads if weights cannot be loaded: one line that names the remedy."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError

from huggingface_hub.errors import LocalEntryNotFoundError

from timm_wsms.errors import UserError
from timm_wsms.hub import errors as hub_errors


@contextmanager
def explained(where: str, name: str, backbone: str) -> Iterator[None]:
    """Within it, weights are fetched or loaded, and nothing else is done: any exception is reported in one line.

    Args:
        where: What the weights are called.
        name: Architecture of the network.
        backbone: Architecture of its backbone.

    Raises:
        UserError: In place of every other exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(explain(error, where, name, backbone)) from error


def explain(error: Exception, where: str, name: str, backbone: str, given: bool = False) -> str:
    """The line.

    Args:
        error: From timm, the Hub's client or PyTorch, while weights were fetched or loaded.
        where: What the weights are called.
        name: Architecture of the network.
        backbone: Architecture of its backbone.
        given: The weights are a file or in memory, so something else could not be fetched.
    """
    known = hub_errors.explain(error, where)
    if isinstance(error, (LocalEntryNotFoundError, URLError)) and (known is None or "cannot be reached" in known):
        missing, instead = where, "pretrained_cfg_overlay=dict(file=...)"
        if given:  # timm's hybrids fetch the weights of their first part on their own
            missing, instead = f"what {backbone} loads before {where}", "checkpoint_path=..., not pretrained=True"
        remedy = f"connect once (without HF_HUB_OFFLINE), or give {instead}"
        return f"{missing} is not in the cache and cannot be reached; {remedy}"
    if known:
        return known
    what = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" …")
    return f"{where} does not load ({what}); give a checkpoint of {backbone}, or one of {name}"
