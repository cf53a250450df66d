"""Accuracy against object size: against values worked out by hand."""

import numpy as np
import pytest

from timm_wsms.evaluation import Predictions, accuracy_by_size


def predictions(index, right):
    """Samples of class 1; class 0 is predicted where it is not right."""
    return Predictions(
        index=np.array(index),
        label=np.ones(len(index), dtype=np.int64),
        predicted=np.array(right, dtype=np.int64),
        in_top5=np.ones(len(index), dtype=bool),
    )


def test_by_hand():
    sizes = np.array([32, 8, 8, 16, 8, 32, 8])
    got = accuracy_by_size(predictions(range(7), [1, 0, 1, 0, 0, 1, 0]), sizes)
    assert got == {8: 25.0, 16: 0.0, 32: 100.0}
    assert list(got) == [8, 16, 32]


def test_sizes_belong_to_the_index_not_to_the_position():
    got = accuracy_by_size(predictions([1, 3], [1, 0]), np.array([8, 16, 24, 32]))
    assert got == {16: 100.0, 32: 0.0}


def test_too_few_sizes():
    with pytest.raises(ValueError, match="Sample 3 has no object size"):
        accuracy_by_size(predictions([0, 3], [1, 1]), np.array([8, 16, 24]))
