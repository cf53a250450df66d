"""A run's folder belongs to one run at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from timm_wsms.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

LOCK = "run.lock"
WAIT = 30.0  # seconds; processes that a killed run started outlive it by less


@contextlib.contextmanager
def lock_run_folder(output: Path, accelerator: "Accelerator") -> Iterator[None]:
    """Context that creates a run's folder and keeps other runs out of it.

    The lock is the operating system's: it ends with the process, however that ends. On a file system without locks,
    nobody is kept out.

    Raises:
        UserError: another process is training into the folder.
    """
    if not accelerator.is_main_process:
        yield
        return
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK, timeout=WAIT)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another process is training into {output}; wait for its end, or choose another --output"
        ) from error
    except (NotImplementedError, OSError):  # no locks there, or a full disk, which the run itself will report
        pass
    try:
        yield
    finally:
        lock.release()
