"""What every test starts from."""

import logging

import pytest


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """Commands of the repository switch timm's messages off for good; the next test may wait for one."""
    disabled = logging.root.manager.disable
    yield
    logging.disable(disabled)
