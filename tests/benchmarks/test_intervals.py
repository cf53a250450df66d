"""Intervals over training runs and test images, against SciPy, by hand, and by how often they cover the truth."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.common.intervals import interval_over_runs
from timm_wsms.evaluation.significance import bootstrap_interval


def test_of_one_run_it_is_the_interval_over_images():
    gains = np.random.default_rng(0).normal(1, 10, 500)
    assert interval_over_runs([gains], False) == interval_over_runs([gains], True) == bootstrap_interval(gains)


def test_runs_with_images_of_their_own_are_students_t_of_their_means():
    random = np.random.default_rng(1)
    gains = [random.normal(gain, 15, size) for gain, size in ((-1.0, 862), (1.0, 863), (4.0, 862), (5.0, 862))]
    expected = ttest_1samp([gain.mean() for gain in gains], 0).confidence_interval(0.95)
    assert interval_over_runs(gains, False) == pytest.approx((expected.low, expected.high))


def test_runs_that_all_agree_leave_the_variation_of_shared_images():
    gains = np.random.default_rng(2).normal(1, 10, 400)
    low, high = interval_over_runs([gains] * 3, True)
    expected = ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert interval_over_runs([gains] * 3, False) == pytest.approx((gains.mean(), gains.mean()))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("of_runs", [0.3, 3.0])
def test_it_covers_the_truth(shared, of_runs):
    """About 95 of 100 times, whether the runs vary little or much."""
    random = np.random.default_rng(3)
    covered, times = 0, 400
    for _ in range(times):
        of_images = random.normal(0, 10, 200) if shared else 0
        gains = [run + of_images + random.normal(0, 5, 200) for run in random.normal(0, of_runs, 3)]
        low, high = interval_over_runs(gains, shared)
        covered += low <= 0 <= high
    assert 0.92 <= covered / times <= 0.985
