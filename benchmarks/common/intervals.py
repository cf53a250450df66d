"""Intervals of a difference between two ways to train, over test images and training runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from timm_wsms.evaluation.significance import LEVEL, bootstrap_interval

RESAMPLES = 2000


@functools.lru_cache(maxsize=32)
def _shares(images: int, draw: int) -> np.ndarray:
    """The share that each image has in each resample, (resamples, images); another `draw` is independent of it."""
    counts = np.random.default_rng((draw, images)).multinomial(images, np.full(images, 1 / images), RESAMPLES)
    return counts / images


def interval_over_runs(gains: Sequence[np.ndarray], shared_images: bool) -> tuple[float, float]:
    """The percentile bootstrap interval, 95 %, of a mean over training runs and test images.

    Runs are drawn with replacement, then images; with a single run, images alone. So it covers what another training
    run would change, as far as a few runs show it: with three or four it is rough, and rather too narrow.

    Args:
        gains: Of each run, the difference on each of its test images, (n,).
        shared_images: Whether all runs have the same test images, so that an image is drawn for all of them at once;
            otherwise each run has images of its own.

    Returns:
        Lower and upper end.
    """
    runs = len(gains)
    if runs == 1:
        low, high = bootstrap_interval(gains[0])
        return float(low), float(high)
    drawn = np.random.default_rng(0).integers(runs, size=(RESAMPLES, runs))
    means = np.zeros(RESAMPLES)
    for place in range(runs):
        draw = 0 if shared_images else place  # a run that is drawn twice has other images each time
        of_runs = np.stack([_shares(len(gain), draw) @ gain for gain in gains], 1)  # (resamples, runs)
        means += np.take_along_axis(of_runs, drawn[:, place : place + 1], 1)[:, 0] / runs
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)
