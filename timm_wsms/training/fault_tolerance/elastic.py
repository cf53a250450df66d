"""torchrun restarts the processes after a failure: they must continue its own run, and no other."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from timm_wsms.files import atomic_write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

LAUNCHERS = "launchers.txt"


def launcher() -> str | None:
    """What all attempts of one torchrun share with no other torchrun; None in a process that it has not started.

    A run id is no such thing, it is "none" by default. But torchrun makes a folder for each attempt's logs and errors,
    `<run id>_<random>/attempt_<number>`, and tells its processes where that is.
    """
    found = re.search(r"([^/]+)/attempt_\d+/", os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    return found[1] if found else None


def mark(output: Path, accelerator: "Accelerator") -> None:
    """Notes in a run's folder whose run it is: the launchers', one on each machine. Every process has to call it."""
    from accelerate.utils import gather_object

    launchers = sorted({name for name in gather_object([launcher()]) if name})
    if launchers and accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        atomic_write_text(output / LAUNCHERS, "".join(f"{name}\n" for name in launchers))


def continues(output: Path) -> bool:
    """Whether this is a further attempt of a launcher that has begun, or resumed, the run in this folder.

    After a change of machines the number of restarts is what it was, so it says nothing.
    """
    noted = output / LAUNCHERS
    return noted.is_file() and launcher() in noted.read_text(encoding="utf-8").splitlines()
