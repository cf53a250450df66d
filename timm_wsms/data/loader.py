"""Batches: which images, in which order, drawn how. The same whatever the number of processes and workers."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from timm_wsms.data.loader_base import AUGMENTATION, CPU, ORDER, Batch, Loader
from timm_wsms.data.progress import progress
from timm_wsms.data.settings import DataSettings
from timm_wsms.data.split import Split, fits_in_memory
from timm_wsms.data.stream import Stream
from timm_wsms.data.stream_loader import StreamLoader
from timm_wsms.data.transforms import eval_transform

SMALL_PART = 1 / 16  # of a GPU's memory, for the images of one split


class IndexedLoader(Loader):
    """Loader of a split whose images can be read in any order."""

    split: Split

    def __init__(self, split: Split, settings: DataSettings, config: dict[str, Any], **arguments: Any):
        super().__init__(split, settings, config, **arguments)
        self._labels = torch.from_numpy(split.labels).to(self.device)

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
        batches = self._batches(self.batch_indices()[self.start :])
        drawn = self._augment.draw(len(self.split), np.random.default_rng((self.seed, self.epoch, AUGMENTATION)))
        for index, images, labels in batches:
            of_batch = {what: of[index].to(self.device) for what, of in drawn.items()}
            yield Batch(index, self._augment(images, of_batch), labels)

    @abstractmethod
    def _batches(self, batches: list[np.ndarray]) -> Iterator[Batch]:
        """Yields the batches, without what is done to a whole batch at once."""


class MemoryLoader(IndexedLoader):
    """Loader of images that are kept decoded at one size. It needs no worker processes.

    With `train_sizes`, a batch is resized from there, after its augmentation.

    Args:
        keep_on: where the images are kept.
    """

    def __init__(
        self, split: Split, settings: DataSettings, config: dict[str, Any], keep_on: torch.device, **arguments: Any
    ):
        super().__init__(split, settings, config, **arguments)
        pixels = torch.from_numpy(pixels_at_input_size(split, config))
        self._pixels = pixels.permute(0, 3, 1, 2).contiguous().to(keep_on)

    def _batches(self, batches: list[np.ndarray]) -> Iterator[Batch]:
        for positions in batches:
            index = torch.from_numpy(positions)
            pixels = self._pixels[index.to(self._pixels.device)]
            yield Batch(index, self._normalized(index, pixels), self._labels[index.to(self.device)])

    def __iter__(self) -> Iterator[Batch]:
        sides = (self.train and self.settings.train_sizes) or [self._pixels.shape[-1]]
        for step, batch in enumerate(super().__iter__(), self.start):
            side = sides[self._drawn_size(step)]
            if side == self._pixels.shape[-1]:
                yield batch
            else:
                images = F.interpolate(batch.images, (side, side), mode="bilinear", antialias=True, align_corners=False)
                yield batch._replace(images=images)


class PerImageLoader(IndexedLoader):
    """Loader of images that are decoded and transformed one by one, in worker processes."""

    def __init__(self, split: Split, settings: DataSettings, config: dict[str, Any], **arguments: Any):
        super().__init__(split, settings, config, **arguments)
        self._workers = self._image_workers(config)

    def _batches(self, batches: list[np.ndarray]) -> Iterator[Batch]:
        sized = ((self._drawn_size(step), indices.tolist()) for step, indices in enumerate(batches, self.start))
        keys = ([(self.epoch, size, index) for index in indices] for size, indices in sized)
        for index, pixels in self._sound(self._workers.decode(keys)):
            if len(index):
                yield Batch(index, self._normalized(index, pixels), self._labels[index.to(self.device)])


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
    split: Split | Stream,
    settings: DataSettings,
    data_config: dict[str, Any],
    *,
    batch_size: int,
    train: bool,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device = CPU,
) -> Loader:
    """Makes the loader that suits a split: in memory where the images are small, decoding one by one otherwise; or
    reading a stream.

    Args:
        split: from `load_splits` or `load_data`.
        settings: those of the augmentation, `train_sizes`, `on_bad_image` and `workers` are used.
        data_config: from `transforms.data_config`.
        batch_size: images per step and process.
        train: shuffle and augment, and drop the last incomplete batch; otherwise every image once, in order.
        seed: seed of the order and the augmentation.
        rank: number of this process.
        world_size: number of processes.
        device: where the batches are wanted. On a GPU with room to spare, small images are kept there.

    Returns:
        An iterable of `Batch`, with `set_epoch`, `len` (steps) and `skipped`.

    Raises:
        UserError: if the split is smaller than one batch; while iterating, if an image cannot be decoded.
    """
    arguments: dict[str, Any] = {"batch_size": batch_size, "train": train, "seed": seed, "device": device}
    arguments |= {"rank": rank, "world_size": world_size}
    if isinstance(split, Stream):
        return StreamLoader(split, settings, data_config, **arguments)
    random_per_image = train and settings.augmentation == "timm"
    if split.pixels is not None and not random_per_image:
        channels, height, width = data_config["input_size"]
        if train and settings.train_sizes:
            height = width = _kept_side(split.pixels, settings.train_sizes, max(height, width))
        if fits_in_memory(len(split), height, width):
            keep_on = device if has_room(device, len(split) * height * width * 3) else CPU
            kept = {**data_config, "input_size": (channels, height, width)}
            return MemoryLoader(split, settings, kept, keep_on=keep_on, **arguments)
    return PerImageLoader(split, settings, data_config, **arguments)


def _kept_side(pixels: np.ndarray, train_sizes: list[int], side: int) -> int:
    """The side at which training images are kept decoded; from it, each batch is resized to one of `train_sizes`.

    It is the largest of them, but small images are not enlarged first, or none would be as sharp as those that the
    network is used with.

    Args:
        pixels: the images, uint8 (n, H, W, C).
        train_sizes: in pixels.
        side: side of the images that the network is used with.
    """
    return min(max(train_sizes), max(side, *pixels.shape[1:3]))


def has_room(device: torch.device, size: int) -> bool:
    """Whether the device is a GPU and `size` bytes are a small part of its memory."""
    return device.type == "cuda" and size <= SMALL_PART * torch.cuda.get_device_properties(device).total_memory
