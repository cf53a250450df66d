"""A test of a package that is not installed is skipped."""

from importlib.metadata import PackageNotFoundError, version

import pytest


def pytest_runtest_setup(item):
    marker = item.get_closest_marker("clients")
    if marker is not None:
        try:
            version(marker.args[0])
        except PackageNotFoundError:
            pytest.skip(f'{marker.args[0]} is not installed; the extra "clients" has it')
