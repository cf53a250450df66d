"""What every test starts from; the Hub on loopback and its client for those that ask for them."""

import gc
import json
import logging
import math
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from tests.helpers.hub_client import Client
from tests.helpers.hub_server import Hub
from tests.helpers.machine_runs import Launchers

DURATIONS = Path(__file__).with_name("durations.json")
LIMIT = 0.7  # seconds of processor time; what takes longer is slow
measured: Counter[str] = Counter()  # by test


def pytest_addoption(parser):
    parser.addoption("--measure-durations", action="store_true", help="record in durations.json what each file takes")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(config, items):
    """Marks as slow what was measured to be; each process of pytest-xdist takes the longest of the files left."""
    known = json.loads(DURATIONS.read_text(encoding="utf-8"))
    slow = {*known["slow_tests"]}
    for item in items:
        if item.nodeid in slow and not item.get_closest_marker("quick"):
            item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: -known["files"].get(_file(item.nodeid), math.inf))  # stable: a file stays together


def _file(test: str) -> str:
    return test.partition("::")[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Counts processor time, which another program does not change much, of the test and its processes."""
    start = sum(os.times()[:4])
    result = yield
    measured[item.nodeid] += sum(os.times()[:4]) - start
    return result


def pytest_sessionfinish(session):
    if session.config.getoption("--measure-durations"):
        known = json.loads(DURATIONS.read_text(encoding="utf-8"))
        files: Counter[str] = Counter()
        for test, seconds in measured.items():
            files[_file(test)] += seconds
        slow = {*known["slow_tests"]} - {*measured} | {test for test, seconds in measured.items() if seconds > LIMIT}
        durations = known["files"] | {file: round(seconds, 1) for file, seconds in files.items()}
        root = session.config.rootpath
        known = {
            "files": {file: durations[file] for file in sorted(durations) if (root / file).exists()},
            "slow_tests": sorted(test for test in slow if (root / _file(test)).exists()),
        }
        DURATIONS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def pytest_collection_finish():
    """What is imported by now stays to the end: garbage collections, up to a second each, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """Commands of the repository switch timm's messages off for good; the next test may wait for one."""
    disabled = logging.root.manager.disable
    yield
    logging.disable(disabled)


@pytest.fixture(autouse=True)
def fresh_accelerator(monkeypatch):
    """Accelerate keeps the precision of the process's first run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def launchers():
    """Starts runs and torchrun quickly."""
    with Launchers() as started:
        yield started


@pytest.fixture(scope="session")
def hub_and_client(tmp_path_factory):
    """A Hub, and a process that talks to it; its cache is the same for all tests."""
    server, home = Hub(), tmp_path_factory.mktemp("hf_home")
    with server.serving() as address, Client(address, home) as client:
        client.home, client.endpoint = home, address
        yield server, client


@pytest.fixture
def hub(hub_and_client):
    """The Hub, without repos and faults."""
    server = hub_and_client[0]
    for left in (server.repos, server.objects, server.faults, server.requests):
        left.clear()
    return server


@pytest.fixture
def client(hub_and_client):
    """The process that talks to it."""
    return hub_and_client[1]


@pytest.fixture(scope="session")
def mounting(tmp_path_factory):
    """Skips where no file system may be mounted, which takes root and, in a container, a capability."""
    from benchmarks.reliability import file_systems

    try:
        with file_systems.memory(tmp_path_factory.mktemp("mounting")):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system may be mounted here: {error}")
