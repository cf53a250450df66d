"""Where and how a figure was measured. Every file in benchmarks/results/ carries it."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import timm_wsms
from timm_wsms.training.environment import cpu_model

ROOT = Path(__file__).resolve().parents[2]


def record() -> dict[str, Any]:
    """Machine, versions, date (UTC) and command line, as plain values for JSON."""
    machine = {
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }
    packages = ("torch", "torchvision", "timm", "accelerate", "timm-wsms")
    return {
        "machine": machine,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command([*_program(), *sys.argv[1:]]),
    }


def _version(name: str) -> str | None:
    """None: not installed, and not needed then. A lent machine runs this package from its checkout."""
    try:
        return timm_wsms.__version__ if name == "timm-wsms" else version(name)
    except PackageNotFoundError:
        return None


def _program() -> list[str]:
    """`-m benchmarks.speed.forward`, or the script's path."""
    spec = sys.modules["__main__"].__spec__
    return ["-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1]


def command(argv: list[str]) -> str:
    """The command line to repeat a measurement, from the repository's root.

    Paths inside the repository are relative to it. Of others only the name is told: they say nothing elsewhere.
    """
    return shlex.join(["python", *[_portable(word) for word in argv]])


def _portable(word: str) -> str:
    """`/some/where/x` → `…/x` and `--name=/some/where/x` → `--name=…/x`; words that are no paths stay."""
    name, equals, value = word.rpartition("=") if word.startswith("-") else ("", "", word)
    path = Path(value).expanduser()
    if not (path.is_absolute() or value.startswith("..") or (os.sep in value and path.exists())):
        return word
    path = path.resolve()
    return f"{name}{equals}{path.relative_to(ROOT) if path.is_relative_to(ROOT) else f'…/{path.name}'}"
