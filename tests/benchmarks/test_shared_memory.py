"""A full /dev/shm: what the benchmark measures, what it has measured, and what the document says of it."""

import json
import signal

import pytest

from benchmarks.reliability import shared_memory
from tests.helpers.paths import ROOT


def check(run, option):
    assert run["exit_code"] == 2 and run["seconds_after_data"] < 60  # `hang_timeout` is 1,800
    assert run["last_line"].startswith("error: the shared memory through which processes send images is full (/dev/shm")
    assert "--shm-size" in run["last_line"] and f"lower {option}" in run["last_line"]


OPTIONS = {"train": "--data.workers", "evaluate": "--workers"}


def test_what_was_measured_is_what_the_document_says():
    runs = json.loads(shared_memory.OUT.read_text(encoding="utf-8"))["runs"]
    document = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert runs.keys() == OPTIONS.keys()
    for name, option in OPTIONS.items():
        check(runs[name]["full"], option)
        assert runs[name]["full, SIGTERM"]["exit_code"] == -signal.SIGTERM
        assert runs[name]["full, SIGTERM"]["seconds_after_data"] < 10
        assert runs[name]["large enough"]["exit_code"] == 0
    full, sent = ([runs[name][what]["seconds_after_data"] for name in OPTIONS] for what in ("full", "full, SIGTERM"))
    assert f"training {full[0]} s, evaluation {full[1]} s after" in " ".join(document.split())
    assert f"SIGTERM ends them within {max(sent)} s" in " ".join(document.split())


@pytest.mark.sweep  # needs to be root, or user namespaces
@pytest.mark.parametrize("name", OPTIONS)
def test_it_ends_by_itself_and_by_a_signal(tmp_path, name):
    words = shared_memory.commands(tmp_path)[name]
    check(shared_memory.run(words, shared_memory.SMALL), OPTIONS[name])
    stopped = shared_memory.run(words, shared_memory.SMALL, signal.SIGTERM)
    assert stopped["exit_code"] == -signal.SIGTERM and stopped["seconds_after_data"] < 60
    assert shared_memory.run(words, shared_memory.LARGE)["exit_code"] == 0
