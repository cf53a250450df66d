"""Accuracy against the size at which the object appears: what a WSMS network is for."""

from __future__ import annotations

import numpy as np

from timm_wsms.evaluation.accuracy import Predictions


def accuracy_by_size(predictions: Predictions, object_sizes: np.ndarray) -> dict[int, float]:
    """Accuracy for each object size, smallest first.

    Args:
        predictions: Of a whole data set or a part of it.
        object_sizes: Side of the object in each image of the data set, in whole pixels, (size of the data set,).

    Returns:
        Object size in pixels → share of its samples whose prediction is right, in percent.

    Raises:
        ValueError: `object_sizes` ends before the samples do.
    """
    if len(predictions) and predictions.index[-1] >= len(object_sizes):
        raise ValueError(f"Sample {predictions.index[-1]} has no object size; there are only {len(object_sizes)}.")
    sizes = np.asarray(object_sizes)[predictions.index]  # (n,)
    return {int(size): 100.0 * float(predictions.correct[sizes == size].mean()) for size in np.unique(sizes)}
