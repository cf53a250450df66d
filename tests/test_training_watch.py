"""Who is named when nothing moves; that the run is ended is in tests/faults."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from timm_wsms.training.watch import Watch


@pytest.fixture
def watches():
    """Of three processes that meet in one store, with a timeout of 2 seconds; the last is behind."""
    store = torch.distributed.HashStore()
    processes = [SimpleNamespace(process_index=rank, num_processes=3) for rank in range(3)]
    watches = [Watch(process, 2.0, store) for process in processes]
    for watch in watches:
        watch.note("loading images")
    for watch in watches[:2]:
        watch.note("a step")
    return watches


def test_the_one_that_has_done_least_is_behind(watches):
    with ThreadPoolExecutor(3) as pool:
        told = [found.result() for found in [pool.submit(watch._agreed) for watch in watches]]
    assert told == ["process 2 is behind, last loading images"] * 3


def test_one_that_does_not_answer_is_named(watches):
    watches[1]._tell(1)
    with ThreadPoolExecutor(2) as pool:
        told = [found.result() for found in [pool.submit(watches[rank]._agreed) for rank in (0, 2)]]
    assert told == ["process 1 does not answer, last a step"] * 2


def test_one_that_concludes_when_the_others_have_left_says_what_they_said(watches):
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(Watch._agreed, watches))
    assert watches[0]._culprits() != "process 2 is behind, last loading images"
    assert watches[0]._agreed() == "process 2 is behind, last loading images"
