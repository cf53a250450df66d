"""A progress bar for what may take a while before training."""

import os
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], what: str, **more: Any) -> Iterable[T]:
    """Shows a progress bar on stderr if it takes more than a second; in the first process only.

    A log file gets an occasional line, not one for each redraw.

    Args:
        items: what to iterate over.
        what: text in front of the bar.
        more: anything else for tqdm.
    """
    first, terminal = os.environ.get("RANK", "0") == "0", sys.stderr.isatty()
    seconds = 0.3 if terminal else 20
    return tqdm(items, what, delay=1, mininterval=seconds, leave=terminal, disable=not first, **more)
