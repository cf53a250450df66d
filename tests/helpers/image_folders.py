"""Image folders of noise: two classes, files in `<split>/<class>/`."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_image_folder(folder: Path, train: int, test: int, sides: tuple[int, int] = (32, 32)) -> Path:
    """Writes `train` and `test` images of each class; their heights and widths lie between `sides`, in pixels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(sides[0], sides[1] + 1, 2)
                pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number:02d}.png")
    return folder
