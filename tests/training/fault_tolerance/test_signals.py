"""Signals, by every launcher that can run here: the step is finished, the run saved, nobody left behind."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

import train_accelerate
from tests.helpers.fault_runs import ACCELERATE, SMALL, TORCHRUN, start, wait_for
from tests.helpers.machine_runs import PAIR
from timm_wsms import cli_errors, evaluation
from timm_wsms.training import checkpoint

pytestmark = pytest.mark.slow  # runs under launchers

LONG = ["--model", "resnet20_cifar", *SMALL, "--schedule.name", "constant", "--epochs", "500", "--eval_every", "500"]


def processes_of(output: Path) -> list[psutil.Process]:
    """All processes, launchers too, that have this folder on their command line."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(output) in (p.info["cmdline"] or ())]


def ranks_of(output: Path) -> list[psutil.Process]:
    """Those that train."""
    launchers = {"torch.distributed.run", "accelerate.commands.launch"}
    return [p for p in processes_of(output) if not launchers & set(p.info["cmdline"])]


def training(launcher: list[str], output: Path) -> subprocess.Popen:
    """Starts a long run, and waits until its first checkpoint is there."""
    process = start(launcher, *LONG, "--output", str(output))
    wait_for(lambda: list((output / "checkpoints").glob("epoch-*")) or process.poll() is not None)
    return process


def saved_and_gone(process: subprocess.Popen, output: Path) -> str:
    """What it printed, once it is gone and nothing of it is left."""
    text, _ = process.communicate(timeout=60)
    wait_for(lambda: not processes_of(output), 20)
    return saved(text, output)


def saved(text: str, output: Path) -> str:
    """Checks that a run has saved where it says so; returns what it printed."""
    stopped = re.search(r"saved after epoch (\d+)(?: and (\d+) steps)?", text)
    assert stopped, text
    name = f"epoch-{int(stopped[1]):04d}" + (f"-step-{int(stopped[2]):06d}" if stopped[2] else "")
    assert (output / "checkpoints" / name / "manifest.json").exists()
    assert re.search(r"^continue with: .*--resume auto$", text, re.MULTILINE)
    return text


def test_each_signal_to_a_process_by_itself(server, tmp_path):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        output, log = tmp_path / number.name, tmp_path / f"{number.name}.log"
        pid = server.start(log, *LONG, "--output", str(output))
        wait_for(lambda output=output: list((output / "checkpoints").glob("epoch-*")))
        os.kill(pid, number)
        assert server.wait() == 0
        assert f"stopped by {number.name}" in saved(log.read_text(), output)


@pytest.mark.parametrize("launcher", [pytest.param("accelerate", marks=pytest.mark.sweep), "torchrun"])
def test_one_rank_under_a_launcher(tmp_path, launcher):
    process = training({"accelerate": ACCELERATE, "torchrun": TORCHRUN}[launcher], tmp_path / "run")
    ranks_of(tmp_path / "run")[-1].send_signal(signal.SIGUSR1)
    saved_and_gone(process, tmp_path / "run")
    assert process.returncode == 0


# What docs/training.md says; the last is the launcher's own exit code.
LAUNCHERS = {
    "accelerate": ACCELERATE,
    "torchrun": TORCHRUN,
    "torchrun USR1": [*TORCHRUN, "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"],
}
DELIVERED = [
    ("accelerate", "launcher", "SIGTERM", -15),
    ("accelerate", "launcher", "SIGUSR1", -10),
    ("accelerate", "group", "SIGINT", -2),
    ("accelerate", "group", "SIGTERM", -15),
    ("torchrun", "launcher", "SIGTERM", 1),
    ("torchrun", "launcher", "SIGINT", 1),
    ("torchrun", "launcher", "SIGUSR1", -10),
    ("torchrun", "launcher", "SIGKILL", -9),
    ("torchrun", "group", "SIGTERM", 1),
    ("torchrun USR1", "launcher", "SIGUSR1", 1),
]


@pytest.mark.parametrize(("launcher", "whom", "name", "code"), DELIVERED)
@pytest.mark.sweep
def test_the_launcher_and_its_process_group(tmp_path, launcher, whom, name, code):
    process = training(LAUNCHERS[launcher], tmp_path / "run")
    send = os.killpg if whom == "group" else os.kill
    send(process.pid, getattr(signal, name))
    saved_and_gone(process, tmp_path / "run")
    assert process.returncode == code


def test_a_signal_during_an_evaluation_is_answered_by_the_next_step(tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    arguments = ["--model", "resnet20_cifar", *SMALL, "--epochs", "2", "--output", str(output), "--resume", "auto"]
    predict, saved_before = evaluation.predict, []

    def signalled(*positional, **named):
        if not saved_before:  # once: there is an evaluation of the average too, and a second signal ends the process
            saved_before.append([path.name for path in checkpoint.all_of(output)])
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        return predict(*positional, **named)

    monkeypatch.setattr(evaluation, "predict", signalled)
    # Nothing asks for a checkpoint of this epoch.
    assert (
        cli_errors.run(lambda: train_accelerate.main([*arguments, "--keep_best", "0", "--checkpoint_every", "9"])) == 0
    )
    assert saved_before[0] == []
    assert "stopped by SIGTERM and saved after epoch 1 and 1 steps" in saved(capsys.readouterr().err, output)
    # After the last epoch there is no next step.
    del saved_before[:]
    assert cli_errors.run(lambda: train_accelerate.main(arguments)) == 0
    assert saved_before[0][-1] == "epoch-0002"
    assert "continue with" not in capsys.readouterr().err
    assert (output / "model" / "config.json").exists()


def test_a_second_signal_ends_it_at_once(launchers, tmp_path):
    """Also where Python does not get to run handlers: process 0 waits in a collective for process 1, which hangs."""
    output = tmp_path / "run"
    job = launchers.launch(None, tmp_path / "log", PAIR, *LONG, "--output", str(output), fault="hang 1 4")
    try:
        wait_for(lambda: list((output / "checkpoints").glob("epoch-*")))
        first = job.workers()[0]
        time.sleep(2)
        first.send_signal(signal.SIGTERM)
        time.sleep(3.5)
        assert first.is_running()  # waits for the other to finish its step
        first.send_signal(signal.SIGTERM)
        wait_for(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE, 5)
    finally:
        job.end()
