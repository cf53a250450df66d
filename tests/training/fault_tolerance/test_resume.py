"""A run that is interrupted, at any step, and resumed ends bit for bit as one that is not."""

import functools
import json
import os
import signal
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

import train_accelerate
from tests.helpers.fault_runs import EVERYTHING, SMALL, images, left_by
from tests.helpers.machine_runs import PAIR
from tests.helpers.streams import write_shards
from timm_wsms import cli_errors
from timm_wsms.training.trainer import DeviceBatches

pytestmark = pytest.mark.slow  # whole training runs, some under torchrun


def data(folder, source: str) -> list[str]:
    """Settings for images that are decoded one by one, from an image folder or from a stream in several files."""
    if source == "in memory":
        return []
    if source == "decoded":
        return ["--data.source", str(images(folder / "images"))]
    stream = ["--data.streaming", "true", "--data.lanes", "2", "--data.shuffle_buffer", "20"]
    # Given sizes take the place of the limits, which would make a single file of them.
    sizes = ["--data.train_limit", "null", "--data.test_limit", "null"]
    return ["--data.source", str(write_shards(folder / "shards")), *stream, *sizes]


def interrupted_after_every_step(monkeypatch, arguments) -> int:
    """Runs, is told to stop in the first step, and resumes, until the run is done. Returns how often that took."""
    load = DeviceBatches._load

    def signalled(batches):
        os.kill(os.getpid(), signal.SIGUSR1)
        return load(batches)

    monkeypatch.setattr(DeviceBatches, "_load", signalled)
    for attempt in range(50):
        done = []
        assert cli_errors.run(lambda done=done: done.append(train_accelerate.main(arguments))) == 0
        if done:
            return attempt
    raise AssertionError("it never comes to an end")


TIMM = ["--data.augmentation", "timm", "--data.timm.auto_augment", "rand-m9-mstd0.5", "--data.timm.re_prob", "0.5"]
SOURCES = {
    "in memory": ["--data.augmentation", "pad_crop_flip"],
    "decoded": ["--data.workers", "0", *TIMM],
    "streamed": ["--data.workers", "0", *TIMM],
    "streamed by workers": ["--data.workers", "2", *TIMM],
}


@pytest.mark.parametrize(
    "source", ["in memory", "decoded", "streamed", pytest.param("streamed by workers", marks=pytest.mark.sweep)]
)
def test_interrupted_after_every_single_step(tmp_path, monkeypatch, capsys, source):
    arguments = [*EVERYTHING, *data(tmp_path, source), *SOURCES[source], "--resume", "auto"]
    train_accelerate.main([*arguments, "--output", str(tmp_path / "whole")])
    assert interrupted_after_every_step(monkeypatch, [*arguments, "--output", str(tmp_path / "parts")]) == 6
    assert left_by(tmp_path / "parts") == left_by(tmp_path / "whole")
    assert "stopped by SIGUSR1 and saved after epoch 1 and 2 steps" in capsys.readouterr().err


# Integration first, then all; each layer at its own rate; an average that warms up; an end before its time.
FINE_TUNING = [
    *("--freeze", "backbone", "--freeze_epochs", "1", "--optimizer.layer_decay", "0.8", "--ema_warmup", "true"),
    *("--early_stop", "1", "--resume", "auto"),
]


def test_interrupted_after_every_single_step_of_a_fine_tuning(tmp_path, monkeypatch, capsys):
    arguments = [*EVERYTHING, "--epochs", "6", *FINE_TUNING]
    train_accelerate.main([*arguments, "--output", str(tmp_path / "whole")])
    assert "no better accuracy in 1 epochs" in capsys.readouterr().out
    epochs = len(left_by(tmp_path / "whole")["metrics"])
    assert 2 <= epochs < 6  # beyond the thaw
    assert interrupted_after_every_step(monkeypatch, [*arguments, "--output", str(tmp_path / "parts")]) == 3 * epochs
    assert left_by(tmp_path / "parts") == left_by(tmp_path / "whole")


@pytest.fixture
def two_processes(server, tmp_path) -> Callable[..., tuple[int, str]]:
    """Runs two processes as torchrun does; returns the exit code and what they printed."""
    return functools.partial(server.finished, tmp_path / "log", processes=2)


def test_two_processes_stopped_before_the_thaw(two_processes, tmp_path, output):
    arguments = [*EVERYTHING, *FINE_TUNING]
    code, text = two_processes(*arguments, "--output", str(tmp_path / "whole"))
    assert code == 0, text
    code, text = two_processes(*arguments, "--output", str(output), fault="SIGTERM 1 1")
    assert (code, "saved after epoch 0 and 2 steps" in text) == (0, True), text
    code, text = two_processes(*arguments, "--output", str(output))
    assert (code, "resumed after epoch 0 and 2 steps" in text) == (0, True), text
    assert left_by(output) == left_by(tmp_path / "whole")


def test_two_processes_with_loader_workers_stopped_in_the_midst_of_an_epoch(launchers, two, tmp_path, output):
    log, arguments = tmp_path / "log", [*two.arguments, "--output", str(output)]
    code, text = launchers.launched(log, PAIR, *arguments, fault="SIGTERM 1 4")
    assert code == 0, text
    assert "stopped by SIGTERM (process 1) and saved after epoch 1 and 2 steps" in text
    assert "continue with: torchrun … " in text
    # Another number of workers changes nothing.
    code, text = launchers.finished(log, *arguments, "--data.workers", "0", processes=2)
    assert (code, "resumed after epoch 1 and 2 steps" in text) == (0, True), text
    assert left_by(output) == two.result


def test_two_processes_that_read_a_stream_stopped_in_the_midst_of_an_epoch(two_processes, tmp_path, output):
    arguments = [*EVERYTHING, *data(tmp_path, "streamed"), *SOURCES["streamed by workers"], "--resume", "auto"]
    code, text = two_processes(*arguments, "--output", str(tmp_path / "whole"))
    assert code == 0, text
    code, text = two_processes(*arguments, "--output", str(output), fault="SIGTERM 1 4")
    assert (code, "saved after epoch 1 and 2 steps" in text) == (0, True), text
    code, text = two_processes(*arguments, "--output", str(output), "--data.workers", "0")
    assert (code, "resumed after epoch 1 and 2 steps" in text) == (0, True), text
    assert left_by(output) == left_by(tmp_path / "whole")


@pytest.mark.parametrize("source", ["in memory", pytest.param("streamed", marks=pytest.mark.sweep)])
def test_another_number_of_processes_keeps_the_batches_and_their_order(two_processes, tmp_path, output, source):
    # Without normalization over a process's own images, and without what each process draws for itself.
    arguments = [
        *("--model", "test_convnext", "--data.input_size", "[3, 32, 32]", "--data.augmentation", "pad_crop_flip"),
        *(*SMALL, "--optimizer.name", "adamw", "--lr", "0.001", "--resume", "auto", *data(tmp_path, source)),
    ]
    train_accelerate.main([*arguments, "--output", str(tmp_path / "whole")])
    code, text = two_processes(*arguments, "--output", str(output), fault="SIGUSR1 0 4")
    assert code == 0, text
    train_accelerate.main([*arguments, "--output", str(output)])
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "whole", output))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5, msg=name)
    losses = [[row["train_loss"] for row in left_by(folder)["metrics"]] for folder in (tmp_path / "whole", output)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_best_epochs_checkpoint_is_kept(server, tmp_path, output):
    arguments = [*EVERYTHING, "--epochs", "5", "--keep_last", "1", "--output", str(output)]
    server.start(tmp_path / "log", *arguments)
    assert server.wait() == 0
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    best = max(rows[:-1], key=lambda row: row["test_top1"])["epoch"]  # the last is measured when all are written
    expected = {f"epoch-{best:04d}", "epoch-0005"}
    assert {path.name for path in (output / "checkpoints").iterdir()} == expected
