"""Makes MNIST-scale from MNIST: every digit at a size of its own.

    python -m benchmarks.mnist_scale.data --source ../shared/data/mnist --seed 0 --output outputs/mnist_scale/data/seed0

All 70,000 digits, each scaled about the center by a factor drawn uniformly from 0.3 to 1 (Pillow's bicubic affine
transform, which does not antialias; a canvas of 28×28; black border), stratified into 10,000 training, 2,000 validation
and 50,000 test images: the protocol of Sosnovik et al. 2020. 8,000 are left over. Each seed is a realization.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, concatenate_datasets, load_dataset
from PIL import Image as Pillow
from torchvision.transforms.functional import InterpolationMode, affine

from timm_wsms.files import atomic_folder

SIZES = (0.3, 1.0)
SPLITS = {"train": 10_000, "validation": 2_000, "test": 50_000}


def scaled(digit: Pillow.Image, factor: float) -> Pillow.Image:
    """The digit about its center, on black."""
    return affine(digit, angle=0, translate=[0, 0], scale=factor, shear=[0.0], interpolation=InterpolationMode.BICUBIC)


def stratified(labels: np.ndarray, sizes: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Indices of each split, with the classes in the same proportions everywhere, in random order.

    Within each class the images are shuffled; their places, spread evenly over [0, 1), then say in which split each is.
    """
    place = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        place[of_class] = (np.arange(len(of_class)) + rng.random()) / len(of_class)
    order = np.argsort(place, kind="stable")
    ends = np.cumsum([*sizes.values()])
    return {name: rng.permutation(part) for name, part in zip(sizes, np.split(order, ends)[:-1], strict=True)}


def all_digits(source: str) -> Dataset:
    """MNIST's training images, then its test images."""
    both = load_dataset(source)
    return concatenate_datasets([both["train"], both["test"]])


def draw(labels: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A realization: the factor of each of the n digits, and the indices of each split, in its order."""
    rng = np.random.default_rng(seed)
    factors = rng.uniform(*SIZES, len(labels))
    return factors, stratified(labels, SPLITS, rng)


def make(source: str, seed: int, output: Path) -> None:
    """Writes one parquet file a split."""
    digits = all_digits(source)
    labels = np.array(digits["label"])
    factors, splits = draw(labels, seed)
    features = Features({"image": Image(), "label": digits.features["label"]})
    with atomic_folder(output) as folder:
        for name, indices in splits.items():
            images = [scaled(digits[int(i)]["image"], float(factors[i])) for i in indices]
            split = Dataset.from_dict({"image": images, "label": labels[indices]}, features=features)
            split.to_parquet(folder / f"{name}-00000-of-00001.parquet")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="ylecun/mnist", help="MNIST: its Hub name, or a local folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    make(options.source, options.seed, options.output)


if __name__ == "__main__":
    main()
