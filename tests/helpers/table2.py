"""What the tests of the paper's Table 2 share: small networks, images like CIFAR-10's and a folder of them."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.cifar10.gpu_data import Augmenter
from benchmarks.cifar10.gpu_forms import Form

CPU = torch.device("cpu")
PLAIN, WSMS = Form("plain", "resnet20_cifar", paper=6.61), Form("WSMS 1x1", "wsms_resnet20_cifar", paper=6.36)
MEAN = Form("mean", "wsmean_resnet20_cifar")


def pixels(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (n, 32, 32, 3), and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n)


def augmenter(dtype: torch.dtype = torch.float64, n: int = 24) -> Augmenter:
    return Augmenter(*pixels(n), CPU, dtype)


def write_cifar10(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A folder like CIFAR-10's, of 48 and 12 images; gives its pixels and labels."""
    folder.mkdir()
    images, labels = pixels(60)
    for name, mine in {"train-0": range(20), "train-1": range(20, 48), "test-0": range(48, 60)}.items():
        encoded = []
        for i in mine:
            buffer = io.BytesIO()
            Image.fromarray(images[i]).save(buffer, "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": None})
        pq.write_table(pa.table({"img": encoded, "label": labels[list(mine)]}), folder / f"{name}.parquet")
    return images, labels
