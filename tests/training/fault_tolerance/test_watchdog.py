"""Who is named when nothing moves; that the run is ended is in tests/faults."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from timm_wsms import cli_errors
from timm_wsms.training.fault_tolerance.watchdog import Watchdog


@pytest.fixture
def watches():
    """Of three processes that meet in one store, with a timeout of 2 seconds; the last is behind."""
    store = torch.distributed.HashStore()
    processes = [SimpleNamespace(process_index=rank, num_processes=3) for rank in range(3)]
    watches = [Watchdog(process, 2.0, store) for process in processes]
    for watchdog in watches:
        watchdog.note("loading images")
    for watchdog in watches[:2]:
        watchdog.note("a step")
    return watches


def test_the_one_that_has_done_least_is_behind(watches):
    with ThreadPoolExecutor(3) as pool:
        told = [found.result() for found in [pool.submit(watchdog._agreed) for watchdog in watches]]
    assert told == ["process 2 is behind, last loading images"] * 3


def test_one_that_does_not_answer_is_named(watches):
    watches[1]._tell(1)
    with ThreadPoolExecutor(2) as pool:
        told = [found.result() for found in [pool.submit(watches[rank]._agreed) for rank in (0, 2)]]
    assert told == ["process 1 does not answer, last a step"] * 2


def test_one_that_concludes_when_the_others_have_left_says_what_they_said(watches):
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(Watchdog._agreed, watches))
    assert watches[0]._culprits() != "process 2 is behind, last loading images"
    assert watches[0]._agreed() == "process 2 is behind, last loading images"


def test_a_store_that_takes_nothing_any_more_is_named():
    class Gone(torch.distributed.HashStore):
        def set(self, *_):
            raise RuntimeError("closed")

    watchdog = Watchdog(SimpleNamespace(process_index=0, num_processes=2), 2.0, Gone())
    assert watchdog._agreed() == "the process that holds the store (the launcher or process 0) does not answer"


@pytest.fixture
def ended(monkeypatch):
    """Lets a watchdog come to its end here; returns what it has written, write by write."""

    def end(watchdog):
        written, left = [], threading.Event()
        monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=written.append, flush=lambda: None))
        monkeypatch.setattr(os, "_exit", lambda code: left.set())
        watchdog.note("works")
        watchdog._run(left)
        return written

    return end


def test_what_is_told_is_written_at_once(ended):
    """Otherwise a line of the launcher's may come between it and the end of its line."""
    watchdog = Watchdog(SimpleNamespace(process_index=0, num_processes=1), timeout=0.2)
    assert ended(watchdog) == ["\nerror: no progress for 0.2 seconds: works\n"]


def test_a_worker_that_hangs_does_not_outlive_the_run(ended):
    worker = multiprocessing.Process(target=time.sleep, args=(600,), daemon=True)
    worker.start()
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        ended(Watchdog(SimpleNamespace(process_index=0, num_processes=1), 0.4))
        worker.join(20)
        assert worker.exitcode == -signal.SIGKILL
    finally:
        worker.kill()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (torch.distributed.DistNetworkError, None),
        (torch.distributed.DistStoreError, "the process that holds the store"),
    ],
)
def test_process_0_that_has_ended_has_told_and_one_that_is_stuck_is_named(ended, fault, told):
    def fails(*_):
        raise fault("no store")

    store = SimpleNamespace(set=fails, check=fails, get=fails, compare_set=fails)
    written = ended(Watchdog(SimpleNamespace(process_index=1, num_processes=2), 0.2, store))
    assert (len(written) == 1 and told in written[0]) if told else written == []


def test_a_store_that_cannot_be_reached_keeps_nobody_waiting(ended, monkeypatch):
    """A machine whose network is down."""
    monkeypatch.setenv("MASTER_ADDR", "node1")
    never = threading.Event()

    def blocks(*_):
        never.wait(20)

    store = SimpleNamespace(set=blocks, check=blocks, get=blocks, compare_set=blocks)
    process = SimpleNamespace(process_index=1, num_processes=2)
    started = time.monotonic()
    written = ended(Watchdog(process, 0.4, store, ["process 0 on node1", "process 1 on node2"]))
    assert time.monotonic() - started < 5
    never.set()
    holder = "the process that holds the store (the launcher or process 0, on node1) does not answer"
    assert written == [f"\nerror: no progress for 0.4 seconds: {holder}\n"]


def test_a_connection_that_breaks_names_the_machine(monkeypatch):
    monkeypatch.setattr(cli_errors.socket, "getnameinfo", lambda address, flags: ("node2", "0"))
    text = "[/gloo/transport/tcp/pair.cc:545] Read error [10.77.0.2]:49290: Connection reset by peer."
    line = cli_errors.explain(RuntimeError(text))
    assert line is not None and line.startswith("the connection to node2 (10.77.0.2) broke;")
    assert line.endswith("continue with --resume auto")


def works_and_idles(watched, notes: int, idle: float) -> None:
    """What a process does that is suspended meanwhile."""
    watchdog = Watchdog(SimpleNamespace(process_index=0, num_processes=1), timeout=4)
    with watchdog:
        watchdog.note("works")
        watched.set()
        for _ in range(notes):
            end = time.process_time() + 0.5  # a sleep would be over when the process goes on
            while time.process_time() < end:
                pass
            watchdog.note("works")
        time.sleep(idle)


@pytest.mark.slow
@pytest.mark.parametrize(("notes", "idle", "code"), [(6, 0, 0), (0, 30, 75)])
def test_a_process_that_was_suspended_goes_on_and_one_that_hangs_does_not(notes, idle, code):
    """Suspended for longer than the timeout."""
    spawn = multiprocessing.get_context("spawn")
    watched = spawn.Event()
    process = spawn.Process(target=works_and_idles, args=(watched, notes, idle))
    process.start()
    assert process.pid is not None and watched.wait(120)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(6)
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == code
