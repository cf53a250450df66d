"""Intervals of a difference between two ways to train, over training runs and test images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from timm_wsms.evaluation.significance import LEVEL, bootstrap_interval


def interval_over_runs(gains: Sequence[np.ndarray], shared_images: bool) -> tuple[float, float]:
    """The 95 % confidence interval of a mean over training runs and test images.

    With a few runs it is Student's t: the runs' means vary with the training and, if each run has images of its own,
    with the images. If all runs have the same images, what the images vary is added, and the degrees of freedom are
    Satterthwaite's (1946). With a single run it is the bootstrap interval over images alone, which says nothing about
    another training run. Folds share training images, which is not accounted for.

    Args:
        gains: Of each run, the difference on each of its test images, (n,).
        shared_images: Whether all runs have the same test images, in the same order.

    Returns:
        Lower and upper end.
    """
    runs = len(gains)
    if runs == 1:
        low, high = bootstrap_interval(gains[0])
        return float(low), float(high)
    from scipy.stats import t

    means = np.array([gain.mean() for gain in gains])
    variance = means.var(ddof=1) / runs
    freedom = runs - 1.0
    if shared_images:
        every = np.stack(gains)  # (runs, images)
        images = every.shape[1]
        rest = every - every.mean(0) - means[:, None] + every.mean()
        interaction = (rest**2).sum() / ((runs - 1) * (images - 1)) / (runs * images)  # is in both of the others
        of_images = every.mean(0).var(ddof=1) / images
        total = max(variance + of_images - interaction, variance, of_images)
        freedom = total**2 / (variance**2 / (runs - 1) + of_images**2 / (images - 1)) if total else freedom
        variance = total
    half = t.ppf((1 + LEVEL) / 2, freedom) * variance**0.5
    return float(means.mean() - half), float(means.mean() + half)
