"""scikit-learn's handwritten digits, shown at different sizes."""

from typing import NamedTuple

import numpy as np
from PIL import Image

CANVAS = 32  # pixels, side of the square canvas
SMALLEST = 8  # pixels, side of scikit-learn's digits, which are never shrunk
TEST_SIZES = tuple(range(SMALLEST, CANVAS + 1, 4))  # 8, 12, … 32 pixels
TEST_FRACTION = 0.2


class Digits(NamedTuple):
    """Digits on canvases.

    Attributes:
        pixels: uint8 (n, 32, 32, 3), white on black, three equal channels.
        labels: int64 (n,), the digit.
        object_sizes: int64 (n,), the digit's side in pixels.
        sources: int64 (n,), which of scikit-learn's 1,797 images it shows.
    """

    pixels: np.ndarray
    labels: np.ndarray
    object_sizes: np.ndarray
    sources: np.ndarray


def place_digit(digit: np.ndarray, size: int, top: int, left: int) -> np.ndarray:
    """Draws one digit at a given size on a black canvas.

    Args:
        digit: float (8, 8), values 0 to 16 as scikit-learn has them.
        size: side in pixels that the digit is resized to (bicubic); at 8 it is shown pixel for pixel.
        top: row of the digit's first row on the canvas.
        left: column of the digit's first column on the canvas.

    Returns:
        uint8 (32, 32).
    """
    image = Image.fromarray(np.round(digit * (255 / 16)).astype(np.uint8))
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    canvas[top : top + size, left : left + size] = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    return canvas


def load_digits(seed: int, train_sizes: tuple[int, int] = (SMALLEST, CANVAS)) -> tuple[Digits, Digits]:
    """The 1,797 digits, split by source image into 1,437 for training and 360 for the test (stratified by class).

    A training digit is shown once, at a size drawn from `train_sizes` and a place drawn from all where it fits. A test
    digit is shown seven times, at 8, 12, … 32 pixels, always in the middle, so that nothing but its size differs.

    Args:
        seed: seed of the split, the sizes and the places.
        train_sizes: smallest and largest side of a training digit in pixels, from 8 to 32.

    Returns:
        (train, test), 1,437 and 2,520 canvases; a digit's seven test sizes follow one another.
    """
    from sklearn import datasets, model_selection  # here, since importing it takes a second

    bunch = datasets.load_digits()
    train_sources, test_sources = model_selection.train_test_split(
        np.arange(len(bunch.target)), test_size=TEST_FRACTION, stratify=bunch.target, random_state=seed
    )
    rng = np.random.default_rng(seed)
    sizes = rng.integers(*train_sizes, size=len(train_sources), endpoint=True)
    corners = rng.integers(0, CANVAS - sizes, size=(2, len(sizes)), endpoint=True).T  # (n, 2)
    test_sizes = np.tile(TEST_SIZES, len(test_sources))
    centered = np.stack([(CANVAS - test_sizes) // 2] * 2, axis=1)  # (n, 2)

    def draw(sources: np.ndarray, sizes: np.ndarray, corners: np.ndarray) -> Digits:
        placed = [
            place_digit(bunch.images[i], s, *corner) for i, s, corner in zip(sources, sizes, corners, strict=True)
        ]
        pixels = np.repeat(np.stack(placed)[..., None], 3, axis=-1)  # (n, 32, 32, 3)
        return Digits(pixels, bunch.target[sources].astype(np.int64), sizes.astype(np.int64), sources)

    return (
        draw(train_sources, sizes, corners),
        draw(np.repeat(test_sources, len(TEST_SIZES)), test_sizes, centered),
    )
