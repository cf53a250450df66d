"""How far to trust figures from one test set: bootstrap intervals and McNemar's test."""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The percentile bootstrap interval (Efron 1979) of means over images, 95 % by 1,000 resamples.

    Images are drawn with replacement; every row gets the same draws, so that rows of one model stay together.

    Args:
        values: A number for each image, (…, n); whether it is recognized, for instance.
        seed: Seed of the draws.

    Returns:
        Lower and upper end, (…,) each; both are the mean if there is only one image.
    """
    from scipy.stats import bootstrap

    values = np.asarray(values, dtype=np.float64)
    if values.shape[-1] == 1:
        return values[..., 0], values[..., 0]
    # a few resamples at a time, which stay in the processor's cache
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=10,
        vectorized=True,
        axis=-1,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return found.low, found.high


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test (1947) of whether two models are right equally often on the same images.

    Args:
        first: Whether the first model is right about each image, bool (n,).
        second: Whether the second is, likewise.

    Returns:
        Number of images that only the first gets right, number that only the second gets right, and the two-sided
        p-value: the chance of a difference at least as large if each such image were either's with probability 1/2.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, differing).pvalue) if differing else 1.0
