"""A network cable that loses or delays packets, in user space: not every kernel has `tc netem`.

    python tests/helpers/cable.py NAME PID LOSS DELAY SEED

Makes a TAP device NAME here and another, eth0, in the network namespace of process PID, and passes frames between them,
in both directions, until it is killed: each is lost with probability LOSS or arrives DELAY seconds later. Prints a line
when both are there.
"""

import collections
import contextlib
import ctypes
import fcntl
import os
import random
import select
import struct
import sys
import time

CREATE, TAP, NO_HEADER = 0x400454CA, 0x0002, 0x1000  # of linux/if_tun.h


def tap(name: str) -> int:
    """Makes a TAP device in this process's network namespace; returns the file for its frames."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, CREATE, struct.pack("16sH", name.encode(), TAP | NO_HEADER))
    return file


def enter(namespace: int) -> None:
    """What `os.setns` does, which is newer than Python 3.11."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def carry(ends: tuple[int, int], loss: float, delay: float, draw: random.Random) -> None:
    """Passes frames on for ever."""
    waiting: collections.deque[tuple[float, int, bytes]] = collections.deque()
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for end in select.select(ends, [], [], pause)[0]:
            try:
                frame = os.read(end, 65536)
            except OSError:  # the device is down
                time.sleep(0.01)
                continue
            if draw.random() >= loss:
                waiting.append((time.monotonic() + delay, other[end], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, end, frame = waiting.popleft()
            with contextlib.suppress(OSError):  # as a cable whose other end is unplugged
                os.write(end, frame)


def main(name: str, pid: str, loss: str, delay: str, seed: str) -> None:
    near = tap(name)
    with open(f"/proc/{pid}/ns/net") as namespace:
        enter(namespace.fileno())
    far = tap("eth0")
    print("ready", flush=True)
    carry((near, far), float(loss), float(delay), random.Random(int(seed)))


if __name__ == "__main__":
    main(*sys.argv[1:])
