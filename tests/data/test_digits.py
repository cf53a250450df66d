"""The embedded digits against scikit-learn's originals, placed by hand."""

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from timm_wsms.data import DataSettings, load_splits
from timm_wsms.data.digits import Digits, load_digits
from timm_wsms.errors import UserError


@pytest.fixture(scope="module")
def digits() -> tuple[Digits, Digits]:
    return load_digits(seed=3)


def placed_by_hand(source: int, size: int, top: int, left: int) -> np.ndarray:
    """(32, 32, 3), written out pixel by pixel."""
    values = datasets.load_digits().images[source]
    original = np.zeros((8, 8), np.uint8)
    for y in range(8):
        for x in range(8):
            original[y, x] = round(values[y, x] / 16 * 255)
    resized = np.array(Image.fromarray(original).resize((size, size), Image.Resampling.BICUBIC))
    canvas = np.zeros((32, 32, 3), np.uint8)
    for y in range(size):
        for x in range(size):
            canvas[top + y, left + x] = resized[y, x]
    return canvas


def test_all_digits_split_by_source_and_class(digits):
    train, test = digits
    assert train.pixels.shape == (1437, 32, 32, 3) and test.pixels.shape == (2520, 32, 32, 3)
    assert train.pixels.dtype == np.uint8 and train.labels.dtype == np.int64 and test.object_sizes.dtype == np.int64
    assert sorted([*train.sources, *test.sources[::7]]) == list(range(1797))
    target = datasets.load_digits().target
    for split in digits:
        np.testing.assert_array_equal(split.labels, target[split.sources])
    assert np.abs(np.bincount(test.labels[::7]) - 0.2 * np.bincount(target)).max() < 1


def test_test_digits_stand_centered_at_each_size(digits):
    test = digits[1]
    np.testing.assert_array_equal(test.object_sizes.reshape(-1, 7), np.tile([8, 12, 16, 20, 24, 28, 32], (360, 1)))
    assert (test.sources.reshape(-1, 7) == test.sources[::7, None]).all()
    for index in (*range(7), 1000, 2519):
        size = int(test.object_sizes[index])
        corner = (32 - size) // 2
        np.testing.assert_array_equal(test.pixels[index], placed_by_hand(test.sources[index], size, corner, corner))


def test_the_smallest_size_is_pixel_for_pixel_the_original(digits):
    test = digits[1]
    inner = test.pixels[0, 12:20, 12:20, 0]
    np.testing.assert_allclose(inner / 255 * 16, datasets.load_digits().images[test.sources[0]], atol=0.04)


def test_train_digits_stand_anywhere_at_any_size(digits):
    train = digits[0]
    assert set(train.object_sizes) == set(range(8, 33))
    corners = set()
    for index in np.flatnonzero(train.object_sizes >= 24)[:12]:
        size = int(train.object_sizes[index])
        top_left = placed_by_hand(train.sources[index], size, 0, 0)
        free = range(33 - size)
        found = [
            (y, x) for y in free for x in free if np.array_equal(np.roll(top_left, (y, x), (0, 1)), train.pixels[index])
        ]
        assert found, f"digit {index} is not at its size anywhere on the canvas"
        corners.update(found)
    assert len({y for y, _ in corners}) > 3 and len({x for _, x in corners}) > 3


def test_a_seed_reproduces_and_another_differs(digits):
    for split, again in zip(digits, load_digits(seed=3), strict=True):
        for values, values_again in zip(split, again, strict=True):
            np.testing.assert_array_equal(values, values_again)
    other = load_digits(seed=4)
    assert not np.array_equal(digits[1].sources, other[1].sources)
    assert not np.array_equal(digits[0].object_sizes, other[0].object_sizes)


def test_training_digits_of_a_range_of_sizes_and_test_digits_of_all():
    settings = DataSettings("digits", digit_sizes=(14, 20))
    train, test = load_splits(settings, seed=3)
    assert set(train.object_sizes.tolist()) == set(range(14, 21))
    assert set(test.object_sizes.tolist()) == {8, 12, 16, 20, 24, 28, 32}
    index = int(np.flatnonzero(train.object_sizes == 17)[0])
    rows, columns = (np.flatnonzero(train.pixels[index].any((axis, 2))) for axis in (1, 0))
    assert rows[-1] - rows[0] < 17 and columns[-1] - columns[0] < 17  # nothing outside its square
    np.testing.assert_array_equal(test.pixels, load_splits(DataSettings("digits"), seed=3)[1].pixels)


@pytest.mark.parametrize("sizes", [(7, 20), (14, 33), (20, 14)])
def test_sizes_that_no_digit_can_have(sizes):
    with pytest.raises(UserError, match=rf"data\.digit_sizes is \[{sizes[0]}, {sizes[1]}\].* from 8 to 32"):
        load_splits(DataSettings("digits", digit_sizes=sizes), seed=0)
