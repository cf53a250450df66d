"""torchrun restarts the processes after a failure: they must continue its own run, not another one."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from timm_wsms.files import atomic_write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

LAUNCHERS = "launchers.txt"


def launcher() -> str | None:
    """An id that all attempts of one torchrun share, and no other torchrun has; None without torchrun.

    The run id does not serve, since it is "none" by default. But torchrun makes a folder for each attempt's logs and
    errors, `<run id>_<random>/attempt_<number>`, and tells its processes where that is.
    """
    found = re.search(r"([^/]+)/attempt_\d+/", os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    return found[1] if found else None


def mark(output: Path, accelerator: "Accelerator") -> None:
    """Records in a run's folder the launchers that it belongs to, one per machine. Every process has to call it."""
    from accelerate.utils import gather_object

    launchers = sorted({name for name in gather_object([launcher()]) if name})
    if launchers and accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        atomic_write_text(output / LAUNCHERS, "".join(f"{name}\n" for name in launchers))


def continues(output: Path) -> bool:
    """Whether this is another attempt of a launcher that has started, or resumed, the run in this folder.

    After a change of machines the number of restarts is unchanged, so it says nothing.
    """
    noted = output / LAUNCHERS
    return noted.is_file() and launcher() in noted.read_text(encoding="utf-8").splitlines()
