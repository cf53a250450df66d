"""Starts runs and launchers without importing again, which takes most of the time of a short run: it forks.

For each line of JSON it starts one, answers with a process id, and writes the exit code into `<log>.code` in the end:

- A run: {"arguments": the training script's, "fault": see fault_driver.py, "log": file for what is printed,
  "processes": how many}. Several get what torchrun tells its own. The id is the first one's, the exit code the first
  that is not 0.
- torchrun, perhaps on a machine (tests/helpers/machines.py): {"torchrun": its arguments, "pid": of a process in whose
  namespaces it runs, or null, "log": as above, "environment": more of it}. The id is that of the process that waits for
  it. The workers are torchrun's own (`--run-path --start-method fork`), and forked as well.
"""

import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

# So that no worker has to:
import matplotlib.pyplot  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch.distributed.run
import torchmetrics  # noqa: F401
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext

import train_accelerate
from tests.helpers.fault_driver import log_steps
from tests.helpers.fault_driver import order as order_fault
from timm_wsms import cli_errors
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
    redirect(Path(order["log"]))
    os.environ.update(order["environment"])
    if order["pid"]:
        enter(order["pid"])
    pid = os.fork()  # only a child is in the namespace of process ids
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.setsid()
    code = 1
    try:
        let_workers_end()
        torch.distributed.run.main(["--run-path", "--start-method", "fork", *order["torchrun"]])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def let_workers_end() -> None:
    """Lets workers that torchrun has forked end when it closes them, as those do that it starts.

    They would wait for it to ask for their result, and be killed after 30 seconds.
    """
    close = MultiprocessContext._close

    def _close(self: MultiprocessContext, *arguments: Any, **options: Any) -> None:
        self._worker_finished_event.set()
        close(self, *arguments, **options)

    MultiprocessContext._close = _close  # type: ignore[method-assign]


def run(order: dict) -> int:
    """Runs the training script to its end, in one process or several, and tells the first one's id."""
    processes = order["processes"]
    group = torchrun_variables(processes) if processes > 1 else [{}]
    pids = [forked(order, variables) for variables in group]
    print(pids[0], flush=True)
    return max((os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids), key=bool)


def torchrun_variables(processes: int) -> list[dict[str, str]]:
    """What torchrun tells each of its processes on one machine."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    same = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
    same |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    return [same | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(processes)]


def forked(order: dict, variables: dict[str, str]) -> int:
    """Starts a process of a run; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    if variables:
        signal.alarm(120)  # nobody ends a process that waits for another one in vain
    os.environ.update(variables)
    redirect(Path(order["log"]))
    sys.argv[1:] = order["arguments"]
    if order["fault"]:
        order_fault(order["fault"])
    if os.environ.get("STEP_LOGS"):
        log_steps(f"{order['log']}.steps")
    sys.exit(cli_errors.run(train_accelerate.main))  # a true exit, which removes temporary folders


def redirect(log: Path) -> None:
    """Lets a file have what is printed."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            log = Path(order["log"])
            code = launch(order) if "torchrun" in order else run(order)
            new = log.with_name(f".{log.name}.code")
            new.write_text(f"{code} {sum(os.times()[:4]):.2f}")
            new.rename(log.with_name(f"{log.name}.code"))
            os._exit(0)
        if "torchrun" in order:
            print(pid, flush=True)


if __name__ == "__main__":
    parse(["--model", "resnet20_cifar", *("--output", os.devnull)])  # imports what reads settings
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    serve()
