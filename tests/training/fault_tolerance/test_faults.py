"""Faults that a run meets: it says so in a line, loses nothing, and goes on as if nothing had happened."""

import json
import random
import re
import resource
import signal
from pathlib import Path

import psutil
import pytest

from tests.helpers.fault_runs import SMALL, Server, images, killed_and_resumed, left_by, wait_for
from tests.helpers.machine_runs import HERE, PAIR

pytestmark = pytest.mark.slow  # runs under launchers, with faults


def ended(server: Server, log: Path, code: int, *arguments: str, fault: str = "") -> str:
    """Runs to the end, which comes with this exit code; returns what was printed."""
    server.start(log, *arguments, fault=fault)
    assert server.wait() == code, log.read_text()
    return log.read_text()


def the_line(text: str) -> str:
    """The one line of an error, the last one."""
    assert "Traceback" not in text
    assert text.count("error: ") == 1
    return text.splitlines()[-1]


# --- SIGKILL


def test_killed_at_random_moments(server, whole, tmp_path):
    draw = random.Random(0)
    delays = [draw.uniform(0.3, 0.9) * whole.seconds for _ in range(3)]
    assert killed_and_resumed(server, whole.arguments, tmp_path, delays) >= 1
    assert left_by(tmp_path / "run") == whole.result


def test_killed_while_it_saves(server, whole, tmp_path):
    draw = random.Random(1)
    delays = [draw.uniform(0, 0.02) for _ in range(3)]
    assert killed_and_resumed(server, whole.arguments, tmp_path, delays, saving=True) == 3
    assert left_by(tmp_path / "run") == whole.result


def test_a_killed_process_is_started_anew_with_the_others(launchers, two, tmp_path, output):
    """The run's own setting is `--resume no`: a restart is torchrun's wish."""
    arguments = [*two.arguments, "--resume", "no", "--output", str(output)]
    code, text = launchers.launched(tmp_path / "log", [*PAIR, "--max-restarts", "1"], *arguments, fault="SIGKILL 1 4")
    assert code == 0, text
    assert "resumed after epoch 1 and 1 steps" in text
    assert left_by(output) == two.result


def test_a_folder_that_was_refused_is_refused_again(launchers, tmp_path, output):
    (output / "model").mkdir(parents=True)
    (output / "model" / "config.json").write_text("another run's")
    once = [*HERE, "--nproc_per_node", "1", "--max-restarts", "1"]
    run = ["--model", "resnet20_cifar", *SMALL, "--output", str(output)]
    code, text = launchers.launched(tmp_path / "log", once, *run)
    assert code != 0
    assert text.count("already holds a run; continue it with --resume auto, or choose another --output") == 2
    assert [path.name for path in output.iterdir()] == ["model"]
    assert (output / "model" / "config.json").read_text() == "another run's"


# --- a hang


@pytest.mark.parametrize("how", ["hang", pytest.param("SIGSTOP", marks=pytest.mark.sweep)])
def test_a_hang_is_ended_with_the_name_of_the_process(launchers, two, tmp_path, output, how):
    arguments = [*two.arguments, "--output", str(output), "--hang_timeout", "6"]
    code, text = launchers.launched(tmp_path / "log", PAIR, *arguments, fault=f"{how} 1 4")
    assert code != 0
    several = set(re.findall(r"error: no progress for 6 seconds: (.*)", text))
    assert len(several) == 1, text
    (told,) = several
    if how == "hang":
        assert told == "process 1 is behind, last loading images for step 2 of epoch 2"
    else:  # the last that was heard of it, if anything, is some seconds old
        assert re.fullmatch(r"process 1 does not answer(, last .*)?", told)


# --- the disk


def test_a_file_that_cannot_grow_ends_the_run_with_a_line_and_loses_nothing(server, whole, tmp_path, output):
    pid = server.start(tmp_path / "log", *whole.arguments, "--output", str(output))
    wait_for(lambda: list(output.glob("checkpoints/epoch-*")))
    psutil.Process(pid).rlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # bytes: less than the weights take
    assert server.wait() == 2
    line = the_line((tmp_path / "log").read_text())
    assert re.search(r"error: the disk is full while writing .*checkpoints/epoch-.*--resume auto", line)
    ended(server, tmp_path / "log", 0, *whole.arguments, "--output", str(output))
    assert left_by(output) == whole.result


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(server, whole, tmp_path, output):
    arguments = [*whole.arguments, "--output", str(output)]
    ended(server, tmp_path / "log", 0, *arguments, fault="SIGTERM 0 4")
    newest = output / "checkpoints" / "epoch-0001-step-000002"
    data = bytearray((newest / "optimizer.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "optimizer.safetensors").write_bytes(data)
    text = ended(server, tmp_path / "log", 0, *arguments)
    assert f"{newest / 'optimizer.safetensors'} is damaged or missing; the checkpoint before it is used" in text
    assert "resumed after epoch 1 and 1 steps" in text
    assert left_by(output) == whole.result


# --- the images


@pytest.fixture
def decoded(tmp_path, whole):
    """Settings for images that two workers decode."""
    source = ["--data.source", str(images(tmp_path / "images")), "--data.augmentation", "timm", "--data.workers", "2"]
    return [*whole.arguments, *source, "--output", str(tmp_path / "run")]


def test_a_loader_worker_that_dies(server, decoded, tmp_path):
    pid = server.start(tmp_path / "log", *decoded, "--epochs", "50")
    wait_for(lambda: list((tmp_path / "run").glob("checkpoints/epoch-*")))
    psutil.Process(pid).children()[0].send_signal(signal.SIGKILL)
    assert server.wait() == 2, (tmp_path / "log").read_text()
    line = the_line((tmp_path / "log").read_text())
    assert re.search(r"error: a process that loads images .*--data\.workers.*--resume auto", line)


def test_images_that_vanish(server, decoded, tmp_path):
    server.start(tmp_path / "log", *decoded, "--epochs", "50")
    wait_for(lambda: list((tmp_path / "run").glob("checkpoints/epoch-*")))
    gone = tmp_path / "images" / "train" / "dog" / "07.png"
    gone.rename(tmp_path / "07.png")
    assert server.wait() == 2, (tmp_path / "log").read_text()
    assert str(gone) in the_line((tmp_path / "log").read_text())
    # With other images the rest of the run would be another.
    line = the_line(ended(server, tmp_path / "log", 2, *decoded, "--epochs", "50"))
    assert "was started with 50 training images, not 49" in line
    (tmp_path / "07.png").rename(gone)
    text = ended(server, tmp_path / "log", 0, *decoded, "--epochs", "50", fault="SIGTERM 0 always")
    assert "resumed after" in text


# --- a loss that is not finite


def test_a_loss_that_is_not_finite_stops_with_step_images_and_a_checkpoint(server, whole, tmp_path, output):
    arguments = [*whole.arguments, "--output", str(output), "--checkpoint_every_steps", "100"]
    line = the_line(ended(server, tmp_path / "log", 2, *arguments, fault="nan 0 4"))
    found = re.search(
        r"the loss is nan in epoch 2, step 2; the weights before it are saved; .*process 0: ([\d ]+)$", line
    )
    assert found, line
    assert len(set(found[1].split())) == 16
    assert (output / "checkpoints" / "epoch-0001-step-000001" / "manifest.json").exists()
    # Without the fault the run goes on from there as if nothing had been, running statistics included.
    ended(server, tmp_path / "log", 0, *arguments)
    assert left_by(output) == whole.result


def test_a_step_that_may_be_left_out_is(server, whole, tmp_path, output):
    arguments = [*whole.arguments, "--output", str(output), "--max_skipped_steps", "1"]
    text = ended(server, tmp_path / "log", 0, *arguments, fault="nan 0 4")
    assert "1 steps left out, not finite" in text
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [0, 1]
    assert all(row["train_loss"] == row["train_loss"] for row in rows)
    # Were every step like that, the second would be one too many.
    arguments[-3] = str(tmp_path / "always")
    line = the_line(ended(server, tmp_path / "log", 2, *arguments, fault="nan 0 always"))
    assert "epoch 1, step 2;" in line
