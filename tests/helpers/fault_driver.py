"""train_accelerate.py with a fault on order. Environment: FAULT="<what> <process> <update of the whole run>".

What: the name of a signal that the process sends itself before that update's last part, or `hang`, or `nan` (that
update's images), or `wait:<file>` (until the file is there). `always` for an update means every one.
"""

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time

import torch

import train_accelerate
from timm_wsms import cli_errors
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.trainer import DeviceBatches


def order(fault: str) -> None:
    """Lets the fault come about, in the first attempt of a process that torchrun may start again."""
    what, process, number = fault.split()
    if process != os.environ.get("RANK", "0") or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        return
    set_rate, load = Schedule.set, DeviceBatches._load
    now = -1

    def set_(self: Schedule, update: int) -> float:
        nonlocal now
        now = update
        return set_rate(self, update)

    def faulty(self: DeviceBatches):  # comes when images are asked for, which is once in every micro step
        batch = load(self)
        if number not in ("always", str(now)):
            return batch
        if what == "hang":
            time.sleep(1000)
        elif what == "nan":
            return batch._replace(images=torch.full_like(batch.images, float("nan")))
        elif what.startswith("wait:"):
            while not os.path.exists(what.removeprefix("wait:")):
                time.sleep(0.05)
        else:
            os.kill(os.getpid(), getattr(signal, what))
            time.sleep(0.1)
        return batch

    Schedule.set, DeviceBatches._load = set_, faulty  # type: ignore[method-assign]


def log_steps(path: str) -> None:
    """Writes a line at the beginning of each update: [update, monotonic time, resident bytes, open files, threads]."""
    set_rate, last = Schedule.set, -1
    page = os.sysconf("SC_PAGE_SIZE")

    def set_(self: Schedule, update: int) -> float:
        nonlocal last
        if update > last:  # the schedule is also asked at an epoch's end
            last = update
            with open("/proc/self/statm") as statm:
                resident = int(statm.read().split()[1]) * page
            files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
            with open(path, "a") as file:
                file.write(json.dumps([update, time.monotonic(), resident, files, threads]) + "\n")
        return set_rate(self, update)

    Schedule.set = set_  # type: ignore[method-assign]


def leave_launcher() -> None:
    """Undoes what a worker has that torchrun has forked and not started: its connections, and a signal at its death."""
    ctypes.CDLL(None).prctl(1, 0)  # PR_SET_PDEATHSIG
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.close(int(name))


if __name__ == "__main__":
    if multiprocessing.parent_process() is not None:
        leave_launcher()
    if os.environ.get("FAULT"):
        order(os.environ["FAULT"])
    sys.exit(cli_errors.run(train_accelerate.main))
