"""CIFAR-10 on a GPU's machine to which only 64 MiB travel per call: packed into parts here, joined and augmented there.

    python -m benchmarks.cifar10.gpu_data --source ../shared/data/cifar10    # writes outputs/gpu/part1 and part2

The parts hold the encoded images as they are in the source: no general compressor makes them smaller. Neither
`datasets` nor our own loader is needed to read them; the GPU's machine has not got all that these import.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from timm_wsms import cli_errors
from timm_wsms.backbones.sequential import CIFAR_MEAN, CIFAR_STD
from timm_wsms.errors import UserError

PADDING = 4  # pixels on each side, He et al. 2016, Section 4.2
LIMIT = 53_500_000  # bytes of a part: with the tracked files, 11 MB, less than the 64 MiB of a call


@dataclass
class Cifar:
    """Pixels, uint8 (N, 32, 32, 3), and labels, int64 (N,), of both splits."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def pack(source: Path, folder: Path, limit: int = LIMIT) -> list[Path]:
    """Writes the images of a folder of parquet files, training split first, as parts of about equal size.

    Args:
        source: Holds `train-*.parquet` and `test-*.parquet` with an image's encoded bytes and its label.
        folder: For the parts.
        limit: Most bytes of a part.

    Raises:
        UserError: There are no such files.
    """
    images, labels, counts = [], [], {}
    for split in ("train", "test"):
        files = sorted(source.glob(f"{split}*.parquet"))
        if not files:
            raise UserError(f"--source {source} has no {split}*.parquet; name a folder with CIFAR-10's parquet files")
        tables = [pq.read_table(file) for file in files]
        before = len(images)
        for table in tables:
            images += table.column(0).combine_chunks().field("bytes").to_pylist()
            labels += table.column("label").to_pylist()
        counts[split] = len(images) - before
    digest = checksum(decode(images), np.array(labels))
    ends = np.cumsum([len(image) for image in images])
    number = int(-(-ends[-1] // (0.995 * limit)))
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, number) / number)
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for part, mine in enumerate(np.split(np.arange(len(images)), cuts), start=1):
        encoded = np.frombuffer(b"".join(images[i] for i in mine), np.uint8)
        lengths = np.array([len(images[i]) for i in mine], np.int32)
        told = {"sha256": digest, "parts": str(number), "train": str(counts["train"])}
        paths.append(folder / f"part{part}")
        tensors = {"encoded": encoded, "lengths": lengths, "labels": np.array([labels[i] for i in mine], np.int64)}
        save_file(tensors, paths[-1], metadata=told)
    return paths


def load(folder: Path) -> Cifar:
    """Joins and decodes the parts.

    Raises:
        UserError: A part is missing, or the pixels are not those that were packed.
    """
    images, labels, parts, told = [], [], 1, {}
    while len(labels) < parts:
        path = folder / f"part{len(labels) + 1}"
        if not path.exists():
            raise UserError(f"{path} is missing; make the parts with benchmarks.cifar10.gpu_data and carry all of them")
        with safe_open(path, "np") as part:
            told, encoded, lengths = part.metadata(), part.get_tensor("encoded").tobytes(), part.get_tensor("lengths")
            labels.append(part.get_tensor("labels"))
        ends = np.cumsum(lengths)
        images += [encoded[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        parts = int(told["parts"])
    pixels, joined, train = decode(images), np.concatenate(labels), int(told["train"])
    if checksum(pixels, joined) != told["sha256"]:
        raise UserError(f"the images in {folder} are not those that were packed; carry the parts of one packing again")
    return Cifar(pixels[:train], joined[:train], pixels[train:], joined[train:])


def decode(images: list[bytes]) -> np.ndarray:
    """Encoded images → uint8 (N, 32, 32, 3)."""

    def one(image: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))

    with ThreadPoolExecutor() as pool:  # Pillow lets other threads run while it decodes
        return np.stack([*pool.map(one, images, chunksize=500)])


def checksum(pixels: np.ndarray, labels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes() + labels.astype(np.int64).tobytes()).hexdigest()


def normalize(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 (N, 32, 32, 3) → float32, normalized by channel, on the device."""
    mean, std = (torch.tensor(values, device=device) for values in (CIFAR_MEAN, CIFAR_STD))
    return (torch.from_numpy(pixels).to(device).float() / 255 - mean) / std


class Augmenter:
    """Epochs of augmented images: each is a function of (seed, epoch) alone, so that a resumed run sees the same.

    Args:
        pixels: uint8 (N, 32, 32, 3).
        labels: int64 (N,).
        device: Where the images stay.
        dtype: Of the images, after normalization in float32.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, device: torch.device, dtype: torch.dtype):
        normalized = normalize(pixels, device).to(dtype)
        margin = (0, 0, PADDING, PADDING, PADDING, PADDING)
        self.padded = torch.nn.functional.pad(normalized, margin)  # (N, 40, 40, 3), with zeros: the channels' means
        self.labels = torch.from_numpy(labels).to(device)
        self.side = pixels.shape[1]

    def draw(self, seed: int, epoch: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which n images, the corners (n, 2) of their crops in the padded images, which are flipped."""
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(self.labels))[:n]
        return order, rng.integers(0, 2 * PADDING, size=(n, 2), endpoint=True), rng.random(n) < 0.5

    def fill(self, seed: int, epoch: int, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Puts an epoch's images into (n, 32, 32, 3), and their labels into (n,). Pad, crop and flip are one gather."""
        device = self.padded.device
        drawn = self.draw(seed, epoch, len(labels))
        order, corners, flips = (torch.from_numpy(values).to(device, non_blocking=True) for values in drawn)
        along = torch.arange(self.side, device=device)
        rows = corners[:, :1] + along  # (n, 32)
        columns = corners[:, 1:] + torch.where(flips[:, None], self.side - 1 - along, along)  # (n, 32)
        torch.index_select(self.labels, 0, order, out=labels)
        images.copy_(self.padded[order[:, None, None], rows[:, :, None], columns[:, None, :]])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="a folder with CIFAR-10's parquet files")
    parser.add_argument("--folder", type=Path, default=Path("outputs/gpu"), help="for the parts")
    parser.add_argument("--limit", type=int, default=LIMIT, help="most bytes of a part")
    options = parser.parse_args(argv)
    for path in pack(options.source, options.folder, options.limit):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.exit(cli_errors.run(main))
