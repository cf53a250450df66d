"""Intervals over training runs and test images, against enumerated and analytic distributions."""

import itertools

import numpy as np
import pytest

from benchmarks.common.intervals import interval_over_runs
from timm_wsms.evaluation.significance import bootstrap_interval


def test_of_one_run_it_is_the_interval_over_images():
    gains = np.random.default_rng(0).normal(1, 10, 500)
    assert interval_over_runs([gains], False) == interval_over_runs([gains], True) == bootstrap_interval(gains)


@pytest.mark.parametrize("shared", [False, True])
def test_runs_that_differ_are_drawn_with_replacement(shared):
    """Without variation between images, only the 3³ equally likely draws of runs are left."""
    each = (0.0, 1.0, 5.0)
    exact = np.sort([np.mean(drawn) for drawn in itertools.product(each, repeat=3)])
    found = interval_over_runs([np.full(100, gain) for gain in each], shared)
    expected = np.quantile(exact, (0.025, 0.975), method="inverted_cdf")  # 0 and 5 have a chance of 1/27 each
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("shared", [False, True])
def test_its_width_is_that_of_both_kinds_of_variation(shared):
    """Against the variance of a resample's mean, worked out by hand."""
    random = np.random.default_rng(1)
    runs, images = 8, 400
    of_images = random.normal(0, 30, images) if shared else 0
    gains = [run + of_images + random.normal(0, 20, images) for run in random.normal(0, 2, runs)]
    means = np.array([gain.mean() for gain in gains])
    between = means.var() / runs
    if shared:  # an image is drawn for all runs at once; the rest is the interaction of runs and images
        every = np.stack(gains)
        rest = every - every.mean(0) - means[:, None] + every.mean()
        within = every.mean(0).var() / images + (rest**2).mean() / runs / images
    else:
        within = np.mean([gain.var() for gain in gains]) / runs / images
    low, high = interval_over_runs(gains, shared)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(between + within), rel=0.05)
    assert (high + low) / 2 == pytest.approx(means.mean(), abs=0.15)


def test_another_run_makes_it_wider_than_images_alone():
    """The case that matters: four folds whose gains differ by more than their images explain."""
    random = np.random.default_rng(2)
    gains = [random.normal(gain, 15, 862) for gain in (-1.0, 1.0, 4.0, 5.0)]
    low, high = interval_over_runs(gains, False)
    narrow = bootstrap_interval(np.concatenate(gains))
    assert low < narrow[0] and high > narrow[1]
