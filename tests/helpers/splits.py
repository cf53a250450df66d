"""Splits of random images: in memory, and as rows of encoded files."""

import io

import datasets
import numpy as np

from timm_wsms.data import Split
from timm_wsms.data.decode import undecoded


def memory_split(n: int = 23, height: int = 12, width: int = 12) -> Split:
    """`n` images of `height` × `width` pixels in five classes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    return Split("train", rng.integers(0, 5, n), list("abcde"), pixels=pixels)


def lazy_split(split: Split, bad: tuple[int, ...] = ()) -> Split:
    """The same images as PNG files in rows; those that are bad are cut off in the middle."""
    files = []
    for index in range(len(split)):
        file = io.BytesIO()
        split.image(index).save(file, "png")
        files.append(file.getvalue()[:100] if index in bad else file.getvalue())
    columns = {"picture": [{"bytes": file, "path": None} for file in files]}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features({"picture": datasets.Image()}))
    rows = undecoded(table, "picture")
    return Split("train", split.labels, split.class_names, rows=rows, image_column="picture")
