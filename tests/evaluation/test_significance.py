"""Intervals: against the binomial distribution, and how often they hold the truth. McNemar's test by hand."""

from math import comb

import numpy as np
import pytest
from scipy.stats import binom

from timm_wsms.evaluation.significance import bootstrap_interval, mcnemar


def test_interval_is_that_of_the_binomial():
    """A bootstrapped share of n images is binomial with the share that was found."""
    hits = np.arange(400) < 300
    low, high = bootstrap_interval(hits)
    assert low == pytest.approx(binom.ppf(0.025, 400, 0.75) / 400, abs=0.006)
    assert high == pytest.approx(binom.ppf(0.975, 400, 0.75) / 400, abs=0.006)


def test_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    low, high = bootstrap_interval(rng.random((400, 200)) < 0.7)  # 400 data sets of 200 images
    assert np.mean((low <= 0.7) & (high >= 0.7)) == pytest.approx(0.945, abs=0.03)


def test_rows_are_drawn_together_and_by_seed():
    hits = np.random.default_rng(0).random((3, 50)) < 0.5
    low, high = bootstrap_interval(hits, seed=3)
    for row in range(3):
        assert bootstrap_interval(hits[row], seed=3) == (low[row], high[row])
    assert not np.array_equal(bootstrap_interval(hits, seed=4), (low, high))


def test_interval_of_one_image_and_of_no_spread():
    assert bootstrap_interval(np.array([1.0])) == (1.0, 1.0)
    assert bootstrap_interval(np.ones(9)) == (1.0, 1.0)


def test_mcnemar_by_hand():
    first = np.array([1] * 8 + [0] * 2 + [1] * 5 + [0] * 3, dtype=bool)
    second = np.array([0] * 8 + [1] * 2 + [1] * 5 + [0] * 3, dtype=bool)
    tail = sum(comb(10, k) for k in (0, 1, 2)) / 2**10
    only_first, only_second, p = mcnemar(first, second)
    assert (only_first, only_second) == (8, 2) and p == pytest.approx(2 * tail)
    assert mcnemar(second, first) == (2, 8, p)
    assert mcnemar(first, first) == (0, 0, 1.0)
