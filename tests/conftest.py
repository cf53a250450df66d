"""What every test starts from; the Hub on loopback and its client for those that ask for them."""

import gc
import logging

import pytest
from accelerate.state import AcceleratorState

from tests.helpers.hub_client import Client
from tests.helpers.hub_server import Hub


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
