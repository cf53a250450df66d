"""The hardware and software that a run used."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "timm", "timm-wsms")


def describe_environment(processes: int, device: torch.device) -> dict[str, Any]:
    """Number of processes, name of each one's device, versions; as plain values for JSON."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return {
        "processes": processes,
        "device": name if device.type in ("cpu", "cuda") else f"{device.type} of {name}",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages on which a run's result depends."""
    return {name: version(name) for name in PACKAGES}


def cpu_model() -> str:
    """The processor's name, as the system knows it."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
