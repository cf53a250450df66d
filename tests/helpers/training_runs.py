"""Runs of the training script for its tests: settings that end soon, and what a run has written."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

FEW = ["--data.train_limit", "40", "--data.test_limit", "21", "--batch_size", "16", "--lr", "0.05"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train_accelerate.py"), *arguments]


def metrics(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def without_times(output: Path) -> list[dict]:
    times = ("seconds", "images_per_second", "data_wait")
    return [{key: value for key, value in row.items() if key not in times} for row in metrics(output)]


def launch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Starts the script by `accelerate launch`, which starts one process only on CPUs."""
    options = ["--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options, "--dynamo_backend", "no"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    run = [*launcher, *command(*arguments)[1:]]
    return subprocess.run(run, cwd=cwd, capture_output=True, text=True, env=environment)
