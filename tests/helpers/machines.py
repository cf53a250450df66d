"""Machines on one computer: network namespaces joined by a bridge, each with a host name, processes and mounts.

Nothing of them is in the computer's own namespaces, and they go with the processes that hold them. `why_not` says
why namespaces may not be made; loopback addresses (`loopback`) stand for machines there.
"""

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.helpers.paths import ROOT

PROGRAMS = ("ip", "unshare", "nsenter")
# Without root, in a user namespace in which this user is root.
UNSHARE = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"])]
NAMESPACES = ["--net", "--mount", "--uts", "--pid"]
PORT = 29400
CABLE = Path(__file__).with_name("cable.py")


class Machine:
    """An address of its own; host name, processes and files are the computer's.

    Attributes:
        name: host name.
        pid: None, since there are no namespaces.
        port: of the rendezvous, if it is this machine that holds it.
    """

    pid: int | None = None
    port = PORT

    def __init__(self, name: str, address: str):
        self.name, self.address = name, address

    def torchrun(self, rendezvous: "Machine", machines: int | str, processes: int = 1) -> list[str]:
        """The options of this machine's launcher, for so many processes; `rendezvous` is the machine that holds it."""
        return [
            *("--nnodes", str(machines), "--nproc_per_node", str(processes), "--local-addr", self.address),
            *("--rdzv-id", "machines", "--rdzv-backend", "c10d", "--rdzv-conf", f"is_host={int(self is rendezvous)}"),
            *("--rdzv-endpoint", f"{rendezvous.address}:{rendezvous.port}"),
        ]


def loopback(count: int) -> list[Machine]:
    """Loopback addresses that stand for machines."""
    made = [Machine(socket.gethostname(), f"127.77.0.{number}") for number in range(1, count + 1)]
    with socket.create_server((made[0].address, 0)) as free:  # other tests may run beside this one
        made[0].port = free.getsockname()[1]
    return made


class NamespaceMachine(Machine):
    """A machine that is a network namespace, with a host name, processes and mounts of its own.

    Args:
        name: its host name.
        address: in the network of all machines.
        network: process that holds the namespace with the bridge.
        hosts: file that says which name has which address.
        cable: loss (0 to 1) and delay (seconds) of the packets to and from it, and the seed of the loss.
    """

    def __init__(
        self, name: str, address: str, network: int, hosts: Path, cable: tuple[float, float, int] | None = None
    ):
        super().__init__(name, address)
        self._made = (name, address, network, hosts, cable)
        self._network = in_namespaces(network, "--net")
        script = f"hostname {name} && mount --bind {hosts} /etc/hosts && ip link set lo up && exec sleep infinity"
        self._holder = subprocess.Popen(
            [*self._network, "unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-c", script],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
        )
        self.pid = _first_child(self._holder)
        self._cable: subprocess.Popen | None = None
        if cable is None:
            _call(*self._network, "ip", "link", "add", name, "type", "veth", "peer", "eth0", "netns", str(self.pid))
        else:
            words = [sys.executable, str(CABLE), name, str(self.pid), *map(str, cable)]
            self._cable = subprocess.Popen([*self._network, *words], stdout=subprocess.PIPE, text=True)
            assert self._cable.stdout and self._cable.stdout.readline() == "ready\n"
        _call(*self._network, "ip", "link", "set", name, "master", "bridge", "up")
        self.call("ip", "address", "add", f"{address}/24", "dev", "eth0")
        self.call("ip", "link", "set", "eth0", "up")

    def enter(self) -> list[str]:
        """What a command line begins with to run on this machine."""
        return in_namespaces(self.pid, *NAMESPACES)

    def call(self, *command: str) -> None:
        """Runs a command here.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        _call(*self.enter(), *command)

    def link(self, up: bool) -> None:
        """Plugs the network cable in, or pulls it: nobody is told of lost connections."""
        _call(*self._network, "ip", "link", "set", self.name, "up" if up else "down")

    def restarted(self) -> "NamespaceMachine":
        """Powers it off, and on again: the same name and address, and none of its processes."""
        self.power_off()
        return NamespaceMachine(*self._made)

    def power_off(self) -> None:
        """Ends it: its processes are killed, and its connections end without a word."""
        with contextlib.suppress(subprocess.CalledProcessError):
            _call(*self._network, "ip", "link", "delete", self.name)
        for process in (self._cable, self._holder):
            if process is not None:
                process.kill()
                process.wait()


def in_namespaces(pid: int, *kinds: str) -> list[str]:
    """What a command line begins with to run in a process's namespaces, and in its working folder."""
    user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    return ["nsenter", "--target", str(pid), *user, *kinds, "--wd", "--"]


@contextlib.contextmanager
def machines(count: int, cable: tuple[float, float, int] | None = None) -> Iterator[list[NamespaceMachine]]:
    """Makes machines `node1`, `node2`, …, and removes them in the end.

    Args:
        count: how many.
        cable: what the last one is joined to the network by, see `NamespaceMachine`; None: one without faults.

    Raises:
        subprocess.CalledProcessError: it may not; `why_not` would have told.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        network = subprocess.Popen([*UNSHARE, "--net", "sleep", "infinity"], cwd=ROOT)
        stack.callback(network.wait)
        stack.callback(network.kill)
        _wait_for_namespace(network.pid, "net")
        enter = in_namespaces(network.pid, "--net")
        _call(*enter, "ip", "link", "add", "bridge", "type", "bridge")
        _call(*enter, "ip", "link", "set", "bridge", "up")
        names = {f"node{number}": f"10.77.0.{number}" for number in range(1, count + 1)}
        hosts = Path(folder) / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in names.items()))
        made: list[NamespaceMachine] = []
        stack.callback(lambda: [machine.power_off() for machine in made])  # those that are there in the end
        for name, address in names.items():
            own = cable if len(made) == count - 1 else None
            made.append(NamespaceMachine(name, address, network.pid, hosts, own))
        yield made


@functools.cache
def why_not() -> str | None:
    """Why machines cannot be made here; None if they can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"there is no `{program}` (Debian: iproute2, util-linux)"
    try:
        with machines(1):
            return None
    except (subprocess.CalledProcessError, OSError, TimeoutError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        return f"namespaces may not be made here, which needs root or user namespaces: {' '.join(detail.split())}"


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)


def _first_child(process: subprocess.Popen) -> int:
    """The process that `unshare --fork` has started, once its host name is set and the rest done."""
    end = time.monotonic() + 10
    while time.monotonic() < end and process.poll() is None:
        for child in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.Error):
                if child.name() == "sleep":
                    return child.pid
        time.sleep(0.01)
    raise TimeoutError("a process in namespaces of its own did not start")


def _wait_for_namespace(pid: int, kind: str) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"):
                return
        time.sleep(0.01)
    raise TimeoutError("a process in a network namespace of its own did not start")
