"""Batches: which images, in which order, drawn how. The same whatever the number of processes and workers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import UserError
from .images import BAD_IMAGE_REMEDY
from .per_image import EpochKeys, TransformedImages, collate, outlive_stop_signals
from .settings import DataSettings
from .sources import Split, fits_in_memory, progress
from .transforms import draw_pad_crop_flip, eval_transform, normalize, pad_crop_flip, train_transform

ORDER, AUGMENTATION = 0, 1  # what a stream of random numbers is for


class Batch(NamedTuple):
    """What a step works on.

    Attributes:
        index: int64 (b,), each image's place in its split.
        images: float32 (b, C, H, W), normalized.
        labels: int64 (b,).
    """

    index: torch.Tensor  # type: ignore[assignment]  # takes the place of tuple.index, which nobody calls
    images: torch.Tensor
    labels: torch.Tensor


class Loader(ABC):
    """Iterates over this process's batches of one epoch.

    In training, an epoch's order follows from (seed, epoch), and what is drawn for an image from (seed, epoch, index).
    The last, incomplete batch is dropped. With W processes, step t of all of them together takes images t·W·b to
    (t+1)·W·b of the order, so that W processes with batch b see what one process sees with batch W·b.

    In evaluation every image comes exactly once over all processes, so that some may have one batch more than others.

    Attributes:
        left_out: indices of the images that this process has met so far and could not decode. Those that
            `split.skipped` counts were left out before, and have no index.
    """

    def __init__(
        self,
        split: Split,
        settings: DataSettings,
        *,
        batch_size: int,
        train: bool,
        seed: int,
        rank: int,
        world_size: int,
    ):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size} images in each process; give at least 1.")
        if train and len(split) < batch_size * world_size:
            raise UserError(
                f"Split {split.name!r} has {len(split)} images, fewer than one batch of {batch_size * world_size};"
                " lower batch_size."
            )
        self.split, self.settings = split, settings
        self.batch_size, self.train, self.seed = batch_size, train, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start = 0, 0
        self.left_out: set[int] = set()
        self._pad_crop_flip = train and settings.augmentation == "pad_crop_flip"
        self._labels = torch.from_numpy(split.labels)

    @property
    def skipped(self) -> int:
        """Number of images in `left_out`, those of this process."""
        return len(self.left_out)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses the epoch that the next iterations go through, and where in it they begin.

        Args:
            epoch: its number. In evaluation all epochs are alike.
            start: the number of this process's batch to begin with, from 0. From there on the batches are those of an
                uninterrupted epoch; those before are neither read nor decoded. `len` counts them all the same.

        Raises:
            ValueError: if `start` is negative or more than the epoch has.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start {start} is no batch of an epoch of {len(self)}")
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        if self.train:
            return len(self.split) // (self.batch_size * self.world_size)
        return -(-len(range(self.rank, len(self.split), self.world_size)) // self.batch_size)

    def batch_indices(self) -> list[np.ndarray]:
        """The indices of the images in each of this process's batches, int64 (b,) each."""
        n, size = len(self.split), self.batch_size
        if not self.train:
            mine = np.arange(self.rank, n, self.world_size)
            return [mine[start : start + size] for start in range(0, len(mine), size)]
        order = np.random.default_rng((self.seed, self.epoch, ORDER)).permutation(n)
        steps = order[: len(self) * self.world_size * size].reshape(len(self), self.world_size, size)
        return list(steps[:, self.rank])

    def __iter__(self) -> Iterator[Batch]:
        batches = self.batch_indices()[self.start :]
        if not self._pad_crop_flip:
            yield from self._batches(batches)
            return
        rng = np.random.default_rng((self.seed, self.epoch, AUGMENTATION))
        corners, flips = map(torch.from_numpy, draw_pad_crop_flip(len(self.split), rng))
        for index, images, labels in self._batches(batches):
            yield Batch(index, pad_crop_flip(images, corners[index], flips[index]), labels)

    @abstractmethod
    def _batches(self, batches: list[np.ndarray]) -> Iterator[Batch]:
        """Yields the batches, augmented except for `pad_crop_flip`."""


class MemoryLoader(Loader):
    """Loader of images that are kept decoded at the network's input size. It needs no worker processes."""

    def __init__(self, split: Split, settings: DataSettings, config: dict[str, Any], **arguments: Any):
        super().__init__(split, settings, **arguments)
        self._pixels = torch.from_numpy(pixels_at_input_size(split, config))
        self._mean, self._std = config["mean"], config["std"]

    def _batches(self, batches: list[np.ndarray]) -> Iterator[Batch]:
        for positions in batches:
            index = torch.from_numpy(positions)
            yield Batch(index, normalize(self._pixels[index], self._mean, self._std), self._labels[index])


class PerImageLoader(Loader):
    """Loader of images that are decoded and transformed one by one, in worker processes."""

    def __init__(self, split: Split, settings: DataSettings, config: dict[str, Any], **arguments: Any):
        super().__init__(split, settings, **arguments)
        transform = train_transform(config, settings) if self.train else eval_transform(config)
        self._keys = EpochKeys()
        self._loader = torch.utils.data.DataLoader(
            TransformedImages(split, transform, config["input_size"][0], (self.seed, AUGMENTATION)),
            batch_sampler=self._keys,
            num_workers=settings.workers,
            persistent_workers=settings.workers > 0,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlive_stop_signals,
            generator=torch.Generator(),  # its own, or else it would draw from the training's random numbers
        )
        if settings.workers:  # they start now, with nothing to do: a fork amid gloo's collectives may hang for good
            iter(self._loader)

    def _batches(self, batches: list[np.ndarray]) -> Iterator[Batch]:
        self._keys.epoch, self._keys.batches = self.epoch, batches
        for index, images, errors in self._loader:
            if errors and self.settings.on_bad_image == "error":
                raise UserError(f"{next(iter(errors.values()))} {BAD_IMAGE_REMEDY}")
            self.left_out.update(errors)
            if len(index):
                yield Batch(index, images, self._labels[index])
            elif self.train:  # the other processes make a step with this batch
                raise UserError(f"Split {self.split.name!r}: no image of a whole batch can be decoded; mend the data.")


def pixels_at_input_size(split: Split, config: dict[str, Any]) -> np.ndarray:
    """Resizes and crops images that are kept decoded as the evaluation transform does, once for all epochs.

    Args:
        split: with `pixels`.
        config: from `data_config`.

    Returns:
        uint8 (n, H, W, C); the split's own pixels if there is nothing to change.
    """
    assert split.pixels is not None
    channels, height, width = config["input_size"]
    if split.pixels.shape[1:] == (height, width, channels) and config["crop_pct"] == 1:
        return split.pixels
    transform = eval_transform(config, normalize=False)
    resized = np.empty((len(split), height, width, channels), np.uint8)
    for index in progress(range(len(split)), f"Resizing {split.name}"):
        image = split.image(index)
        resized[index] = transform(image if channels == 3 else image.convert("L")).permute(1, 2, 0)
    return resized


def make_loader(
    split: Split,
    settings: DataSettings,
    data_config: dict[str, Any],
    *,
    batch_size: int,
    train: bool,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Makes the loader that suits a split: in memory where the images are small, decoding one by one otherwise.

    Args:
        split: from `load_splits`.
        settings: of which `augmentation`, `timm`, `on_bad_image` and `workers` count.
        data_config: from `transforms.data_config`.
        batch_size: images per step and process.
        train: shuffle and augment, and drop the last incomplete batch; otherwise every image once, in order.
        seed: of the order and the augmentation.
        rank: number of this process.
        world_size: number of processes.

    Returns:
        An iterable of `Batch`, with `set_epoch`, `len` (steps) and `skipped`.

    Raises:
        UserError: if the split is smaller than one batch; while iterating, if an image cannot be decoded.
    """
    _, height, width = data_config["input_size"]
    random_per_image = train and settings.augmentation == "timm"
    in_memory = split.pixels is not None and not random_per_image and fits_in_memory(len(split), height, width)
    kind = MemoryLoader if in_memory else PerImageLoader
    return kind(
        split,
        settings,
        data_config,
        batch_size=batch_size,
        train=train,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
