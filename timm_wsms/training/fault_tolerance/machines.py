"""Which machine a process is on, for lines that say where something went wrong."""

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator


def process_names(accelerator: "Accelerator") -> list[str]:
    """Names all processes, including their machines if there are several. Every process has to call it."""
    from accelerate.utils import gather_object

    hosts = gather_object([socket.gethostname()])
    several = len(set(hosts)) > 1
    return [f"process {rank}" + (f" on {host}" if several else "") for rank, host in enumerate(hosts)]
