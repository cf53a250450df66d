"""docs/slurm.sbatch, with stand-ins for `srun` and `scontrol` that start two processes on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow  # starts two processes

SRUN = """#!/bin/bash
[[ $1 == --kill-on-bad-exit=1 ]] && shift
pids=()
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" &
    pids+=($!)
done
if [[ -n ${WARN:-} ]]; then  # as Slurm does before the time limit, once the first checkpoint is there
    until compgen -G "$OUTPUT/checkpoints/epoch-*" > /dev/null; do sleep 0.2; done
    kill -USR1 "${pids[@]}"
fi
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
if [[ "$1 $2" == "show hostnames" ]]; then echo localhost; echo "not $3"; else echo "$@" >> "$(dirname "$0")/asked"; fi
"""
SMALL = ["--model", "resnet20_cifar", "--batch_size", "16", "--data.train_limit", "64", "--data.test_limit", "20"]


@pytest.fixture
def sbatch(tmp_path):
    """Runs the script as `sbatch` would; returns what it printed, its exit code, and what it asked of Slurm."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(*arguments: str, **more: str) -> tuple[str, int, list[str]]:
        environment = {
            **os.environ,
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SLURM_JOB_NODELIST": "node[01-02]",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NAME": "test",
            "OUTPUT": str(tmp_path / "run"),
            "ACCELERATE_USE_CPU": "true",
            **more,
        }
        command = ["bash", "docs/slurm.sbatch", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
        asked = (programs / "asked").read_text().splitlines() if (programs / "asked").exists() else []
        return done.stdout + done.stderr, done.returncode, asked

    return run


def test_two_tasks_train_as_one_run(sbatch, tmp_path):
    text, code, asked = sbatch(*SMALL, "--epochs", "1")
    assert code == 0, text
    assert "2 × cpu" in text and text.count("Checkpoint folder") == 1
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert asked == []


@pytest.mark.sweep
def test_a_warned_job_saves_and_is_queued_again_and_an_error_is_not(sbatch, tmp_path):
    long = [*SMALL, "--schedule.name", "constant", "--eval_every", "500"]
    text, code, asked = sbatch(*long, "--epochs", "500", WARN="1")
    assert code == 0 and "stopped by SIGUSR1" in text, text
    assert asked == [f"requeue {os.getpid()}"]
    assert not (tmp_path / "run" / "model").exists()
    text, code, asked = sbatch(*long, "--epochs", "500", "--lr", "0.3")
    assert code != 0 and "lr 0.1 → 0.3" in text, text
    assert len(asked) == 1
