"""Undisturbed runs, which the disturbed ones are compared with."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.fault_runs import EVERYTHING, ONE, Server, images, left_by


@dataclass
class Whole:
    """An undisturbed run: its settings, what it has left, and how long it took."""

    arguments: list[str]
    result: dict
    seconds: float


@pytest.fixture(scope="session")
def server(launchers) -> Server:
    """Starts runs quickly."""
    return launchers


@pytest.fixture(scope="session")
def whole(server, tmp_path_factory) -> Whole:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("whole")
    server.start(folder / "log", *ONE, "--output", str(folder / "run"))
    started = time.monotonic()
    assert server.wait() == 0, (folder / "log").read_text()
    return Whole(ONE, left_by(folder / "run"), time.monotonic() - started)


@pytest.fixture(scope="session")
def two(server, tmp_path_factory) -> Whole:
    """A run of two processes with two loader workers each, on an image folder with random augmentation."""
    folder = tmp_path_factory.mktemp("two")
    source = ["--data.source", str(images(folder / "images")), "--data.augmentation", "timm", "--data.workers", "2"]
    arguments = [*EVERYTHING, *source, "--checkpoint_every_steps", "1", "--resume", "auto"]
    started = time.monotonic()
    code, text = server.finished(folder / "log", *arguments, "--output", str(folder / "run"), processes=2)
    assert code == 0, text
    return Whole(arguments, left_by(folder / "run"), time.monotonic() - started)


@pytest.fixture
def output(tmp_path) -> Path:
    """Where the disturbed run goes."""
    return tmp_path / "run"
