"""Workers that die, and workers that meet a fault. What a user reads of it is tested in faults/."""

import os
import signal
import time

import numpy as np
import psutil
import pytest

from timm_wsms.data.image_dataset import ImageWorkers


class Images:
    def __getitems__(self, keys):
        return [(key, np.full((3, 2, 2), key, np.uint8)) for key in keys]


class FarImages:
    def __getitems__(self, keys):
        raise ConnectionResetError("the store of images hung up")


@pytest.fixture
def silent_deaths():
    """As if torch did not hear yet that a worker has died."""
    hears = signal.getsignal(signal.SIGCHLD)
    yield lambda: signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, hears)


def test_a_worker_dies_before_its_images_are_fetched(silent_deaths):
    before = set(psutil.Process().children())
    batches = ImageWorkers(Images(), 1).decode([[1], [2]])
    (worker,) = set(psutil.Process().children()) - before
    silent_deaths()
    assert next(batches)[0].tolist() == [1]
    time.sleep(1)  # the second batch is announced by now, and its tensors are fetched from the worker itself
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        next(batches)


@pytest.mark.parametrize("count", [0, 1])
def test_a_connection_that_breaks_while_an_image_is_read_is_not_taken_for_a_dead_worker(count):
    with pytest.raises(ConnectionResetError, match="the store of images hung up"):
        list(ImageWorkers(FarImages(), count).decode([[1]]))
