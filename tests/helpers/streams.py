"""Sources in several files, as data sets on the Hub have them, for tests of streams."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

NAMES = ["cat", "dog"]
SPLIT = "  - name: {}\n    num_bytes: 0\n    num_examples: {}\n"


def write_shards(
    folder: Path,
    train: tuple[int, ...] = (9, 7, 11, 3, 12, 8),
    test: tuple[int, ...] = (4, 1, 5),
    *,
    card: bool = True,
    label: object = None,
    wrong: tuple[int, int] | None = None,
) -> Path:
    """Writes parquet files of noise, labelled at random.

    Args:
        folder: where.
        train: images in each file of the training split.
        test: likewise of the test split.
        card: write a README.md that says how many there are.
        label: the label's type.
        wrong: place in the whole split, of a training image, and its label.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    image = {"img": datasets.Image()}
    features = datasets.Features({**image, "label": label or datasets.ClassLabel(names=NAMES)})
    plain = datasets.Features({**image, "label": datasets.Value("int64")})  # can hold what is no class
    for split, sizes in (("train", train), ("test", test)):
        pixels, labels = contents(split, sum(sizes))
        if wrong and split == "train":
            labels[wrong[0]] = wrong[1]
        ends = np.cumsum(sizes).tolist()
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            columns = {"img": [Image.fromarray(image) for image in pixels[start:end]], "label": labels[start:end]}
            file = folder / f"{split}-{number:05d}-of-{len(sizes):05d}.parquet"
            table = datasets.Dataset.from_dict(columns, features=plain).with_format("arrow")[:]
            pq.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), file)
    if card:
        sizes = SPLIT.format("train", sum(train)) + SPLIT.format("test", sum(test))
        (folder / "README.md").write_text(f"---\ndataset_info:\n  splits:\n{sizes}---\n")
    return folder


def contents(split: str, count: int) -> tuple[np.ndarray, list]:
    """Images uint8 (count, 32, 32, 3) and labels of a whole split."""
    rng = np.random.default_rng(len(split))
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 2, count).tolist()


def places(sizes: tuple[int, ...]) -> dict[int, int]:
    """From an image's index in a stream to its place in the whole split."""
    indices = [shard * 10**9 + row for shard, size in enumerate(sizes) for row in range(size)]
    return {index: place for place, index in enumerate(indices)}
