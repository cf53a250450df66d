"""Errors that a user can fix, reported in one line instead of a traceback."""

import errno
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from timm_wsms.errors import UserError
from timm_wsms.foreign import printable

EXIT_CODE = 2
# A launcher ends the other processes well within this time after the first has failed.
HEAD_START = 5.0  # seconds
# For a file: the device fails, or a network drive has lost it or was interrupted.
FAILING_DISK = (errno.EIO, errno.ESTALE, errno.EINTR, errno.EREMOTEIO)
# What PyTorch says when a worker finds no room for a batch; the third is a worker killed while writing to it.
SHARED_MEMORY_FULL = ("shared memory", "No space left on device", "Bus error")


@dataclass(frozen=True)
class Remedies:
    """What a command's user can do about faults, in words that name the command's own options.

    Attributes:
        again: once the obstacle is gone.
        place: about a disk that cannot be written to.
        workers: about processes that load images and need too much memory.
        memory: about running out of it.
    """

    again: str = "run it again"
    place: str = "choose another disk"
    workers: str = "give it more memory"
    memory: str = "use a machine with more of it"


TRAINING = Remedies(
    again="continue with --resume auto",
    place="choose another --output",
    workers="lower --data.workers",
    memory="lower --batch_size, or keep it and raise --grad_accumulation (a power of two that divides it) so that "
    "fewer images are in memory at a time; --precision bf16 needs less too",
)


def explain(error: BaseException, remedies: Remedies = TRAINING) -> str | None:
    """Returns one line that says what is wrong and names the remedy, or None if the fault may well be the program's.

    Names of files, classes and the like may be a stranger's: control characters in them are escaped.
    """
    line = _explain(error, remedies)
    return line and printable(line)


def _explain(error: BaseException, remedies: Remedies) -> str | None:
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}; free some space, then {remedies.again}, or {remedies.place}"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{error.filename or 'the output folder'} is on a disk that cannot be written to; {remedies.place}"
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename} may not be read or written by this user; change its permissions"
    if isinstance(error, OSError) and error.errno in FAILING_DISK:
        return (
            f"{error.filename or 'a file'} cannot be read or written ({os.strerror(error.errno)}): check the disk or "
            f"network drive, then {remedies.again}, or {remedies.place}"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        if any(sign in str(error) for sign in SHARED_MEMORY_FULL):
            return (
                f"the shared memory through which processes send images is full{_size_of('/dev/shm')}; give it more "
                f"(docker run --shm-size 8g) or {remedies.workers}, then {remedies.again}"
            )
        return (
            f"a process that loads images has died ({str(error).splitlines()[0]}), perhaps for lack of memory: "
            f"{remedies.workers}, then {remedies.again}"
        )
    if is_the_hubs(error):
        return (
            f"the Hub did not deliver ({' '.join(str(error).split())}); check the name; if it is private or gated, log "
            "in (hf auth login, or set HF_TOKEN) and accept its terms; without a network fetch it where there is one "
            "(hf download <name>), copy HF_HOME here and set HF_HUB_OFFLINE=1"
        )
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        return (
            "batch normalization got a single image, since others of its micro-batch were left out: fix the data, "
            "raise --batch_size or lower --grad_accumulation"
        )
    if is_out_of_memory(error):
        return f"out of memory: {remedies.memory}"
    if lost := re.search(r"gloo.* \[([^\]]+)\]:\d+", str(error)) if isinstance(error, RuntimeError) else None:
        return (
            f"the connection to {_machine(lost[1])} broke; a process there has ended, and its own last lines "
            f"say why, or the machine or its network is down: {remedies.again}"
        )
    return None


def _machine(address: str) -> str:
    """A machine's name and address."""
    try:
        name, _ = socket.getnameinfo((address, 0), 0)
    except OSError:
        name = address
    return address if name == address else f"{name} ({address})"


def this_machine() -> str:
    """` on <host name>` if torchrun's or Slurm's processes are on several machines."""
    machines = int(os.environ.get("GROUP_WORLD_SIZE") or os.environ.get("SLURM_NNODES") or 1)
    return f" on {socket.gethostname()}" if machines > 1 else ""


def _size_of(folder: str) -> str:
    """The size of a file system, in brackets; nothing if there is none."""
    try:
        return f" ({folder} has {shutil.disk_usage(folder).total / 2**20:.0f} MiB)"
    except OSError:
        return ""


def is_the_hubs(error: BaseException) -> bool:
    """Whether the Hub cannot be reached, or has nothing of this name for this user."""
    from huggingface_hub import errors

    return isinstance(error, (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the accelerator's or the machine's memory is exhausted."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


class Stopped(Exception):  # noqa: N818  it is not an error
    """The run was asked to stop, and has saved where it is. The message says when and by what."""


def command_to_resume() -> str:
    """The command that continues a stopped run. A launcher's own options are not known."""
    launcher = "torchrun …" if "TORCHELASTIC_RUN_ID" in os.environ else "accelerate launch …"
    words = list(sys.argv)
    if "--resume=auto" not in words and ("--resume", "auto") not in pairwise(words):
        words += ["--resume", "auto"]
    return f"{launcher if under_launcher() else 'python'} {shlex.join(words)}"


def under_launcher() -> bool:
    """Whether torchrun or `accelerate launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def run(main: Callable[[], None], remedies: Remedies = TRAINING) -> int:
    """Calls `main` and returns the process's exit code: 0, or 2 after printing one line for a user's mistake.

    Under a launcher, most faults occur in all processes at once, and process 0 reports them. One that occurs only in
    another process, such as an image that cannot be decoded, is reported there: that process waits until process 0
    would have reported it and the launcher ended them all.
    """
    rank = int(os.environ.get("RANK", "0"))
    try:
        main()
    except Stopped as stopped:
        if rank == 0:
            print(f"{stopped}\ncontinue with: {command_to_resume()}", file=sys.stderr, flush=True)
        return 0
    except KeyboardInterrupt:
        if rank == 0:
            print(f"\ninterrupted; {remedies.again}", file=sys.stderr)
        return 130
    except Exception as error:
        message = explain(error, remedies)
        if message is None:
            raise
        if rank:
            time.sleep(HEAD_START)
        where = (f" in process {rank}" if rank else "") + this_machine()
        print(f"error{where}: {message}", file=sys.stderr, flush=True)
        return EXIT_CODE
    return 0
