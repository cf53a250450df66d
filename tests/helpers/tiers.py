"""Cases of one test of which only some are quick."""

from collections.abc import Iterable

import pytest


def slow_except(cases: Iterable, *quick) -> list:
    """For `pytest.mark.parametrize`: all cases, those that are not `quick` marked slow."""
    cases = [*cases]
    assert all(case in cases for case in quick), f"not all of {quick} are among {cases}"
    return [case if case in quick else pytest.param(*_values(case), marks=pytest.mark.slow) for case in cases]


def _values(case) -> tuple:
    return case if isinstance(case, tuple) else (case,)
