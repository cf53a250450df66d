"""Cases of one test of which only some are quick."""

from collections.abc import Iterable

import pytest


def slow_except(cases: Iterable, *quick: str) -> list:
    """For `pytest.mark.parametrize`: all cases, marked slow but for those whose name (the first value) is `quick`."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    assert set(quick) <= {name for name, *_ in values}, quick
    return [pytest.param(*value, marks=[] if value[0] in quick else pytest.mark.slow) for value in values]
