"""Starts torchrun on machines (tests/helpers/machines.py) without importing again: it forks what it has imported.

For each line of JSON it starts one, in the namespaces of a process: {"arguments": torchrun's, "pid": of that process or
null, "log": file for what is printed, "environment": more of it}. Answers with the process id; the exit code comes into
`<log>.code`. The workers are torchrun's too (`--run-path --start-method fork`), and forked as well.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

# So that no worker has to:
import matplotlib.pyplot  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch.distributed.run
import torchmetrics  # noqa: F401

import train_accelerate  # noqa: F401
from timm_wsms.training.settings import parse

LIBC = ctypes.CDLL(None, use_errno=True)
KINDS = ("user", "net", "uts", "pid", "mnt")  # the last, which takes /proc away


def enter(pid: int) -> None:
    """Moves this process into another's namespaces, and the processes that it will start into its process ids."""
    folder = os.getcwd()
    same = os.stat(f"/proc/{pid}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino
    descriptors = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in KINDS[same:]]
    for descriptor in descriptors:
        if LIBC.setns(descriptor, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        os.close(descriptor)
    os.chdir(folder)


def launch(order: dict) -> int:
    """Runs torchrun to its end; returns the exit code."""
    os.environ.update(order["environment"])
    if order["pid"]:
        enter(order["pid"])
    pid = os.fork()  # only a child is in the namespace of process ids
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.setsid()
    code = 1
    try:
        torch.distributed.run.main(["--run-path", "--start-method", "fork", *order["arguments"]])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            log = Path(order["log"])
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = launch(order)
            new = log.with_name(f".{log.name}.code")
            new.write_text(f"{code} {sum(os.times()[:4]):.2f}")
            new.rename(log.with_name(f"{log.name}.code"))
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    parse(["--model", "resnet20_cifar", *("--output", os.devnull)])  # imports what reads settings
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    serve()
