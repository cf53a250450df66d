"""What a loader yields, and what all loaders have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from timm_wsms.data.batch_augmentation import BatchAugmentation
from timm_wsms.data.decode import remedy
from timm_wsms.data.image_dataset import ImageWorkers, TransformedImages
from timm_wsms.data.random_numbers import random_numbers_kept, seed_random_numbers
from timm_wsms.data.settings import DataSettings
from timm_wsms.data.split import Split
from timm_wsms.data.stream import Stream
from timm_wsms.data.transforms import eval_transform, normalize, random_erasing, train_transform
from timm_wsms.errors import UserError

ORDER, AUGMENTATION, SIZES, ERASING = range(4)  # what a stream of random numbers is for
CPU = torch.device("cpu")


class Batch(NamedTuple):
    """What a step works on.

    Attributes:
        index: int64 (b,), each image's place in its split; on the CPU, wherever the others are.
        images: float32 (b, C, H, W), normalized, on the loader's device.
        labels: int64 (b,), likewise.
    """

    index: torch.Tensor  # type: ignore[assignment]  # takes the place of tuple.index, which nobody calls
    images: torch.Tensor
    labels: torch.Tensor


class Loader(ABC):
    """Iterates over this process's batches of one epoch, on a device.

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
        split: Split | Stream,
        settings: DataSettings,
        config: dict[str, Any],
        *,
        batch_size: int,
        train: bool,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device = CPU,
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
        self.rank, self.world_size, self.device = rank, world_size, device
        self._mean, self._std = config["mean"], config["std"]
        self.epoch, self.start = 0, 0
        self.left_out: set[int] = set()
        self._augment = BatchAugmentation(settings if train else DataSettings())
        self._erase = random_erasing(settings) if train else None

    @property
    def skipped(self) -> int:
        """Number of images in `left_out`, those of this process."""
        return len(self.left_out)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Sets the epoch of the next iterations, and where in it they begin.

        Args:
            epoch: its number. In evaluation all epochs are the same.
            start: the number of this process's batch to begin with, from 0. From there on the batches are those of an
                uninterrupted epoch; those before are not decoded, and not read either, unless the split is a stream.
                `len` still counts them.

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

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]: ...

    def _normalized(self, index: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """The images of a batch, uint8 (b, C, H, W) on the CPU, as they are fed: on the device, which is faster."""
        images = normalize(pixels.to(self.device, non_blocking=True), self._mean, self._std)
        if self._erase:
            with random_numbers_kept():
                for number, image in zip(index.tolist(), images, strict=True):
                    seed_random_numbers(self.seed, ERASING, self.epoch, number)
                    self._erase(image)
        return images

    def _drawn_size(self, step: int) -> int:
        """Which of `train_sizes` the images of a batch have, the same in all processes; 0 where there are none."""
        if not (self.train and self.settings.train_sizes):
            return 0
        rng = np.random.default_rng((self.seed, self.epoch, SIZES, step))
        return int(rng.integers(len(self.settings.train_sizes)))

    def _image_workers(self, config: dict[str, Any]) -> ImageWorkers:
        """Worker processes with a transform for each of `train_sizes`, or with the only one."""
        channels, height, width = config["input_size"]
        sizes = [(side, side) for side in (self.train and self.settings.train_sizes) or ()] or [(height, width)]
        configs = [{**config, "input_size": (channels, *size)} for size in sizes]
        transforms = [
            train_transform(c, self.settings, False) if self.train else eval_transform(c, False) for c in configs
        ]
        return ImageWorkers(
            TransformedImages(self.split, transforms, channels, (self.seed, AUGMENTATION)), self.settings.workers
        )

    def _sound(
        self, decoded: Iterable[tuple[torch.Tensor, torch.Tensor, dict[int, str]]]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The images of each batch that could be decoded, after their indices; in evaluation that may be none.

        Args:
            decoded: (index, images uint8 (b, C, H, W), errors by index) of each batch.

        Raises:
            UserError: if an image could not and that should stop the run, or if in training none of a batch could.
        """
        for index, images, errors in decoded:
            if errors and self.settings.on_bad_image == "error":
                raise UserError(f"{next(iter(errors.values()))} {remedy(self.settings)}")
            self.left_out.update(errors)
            if self.train and not len(index):  # the other processes make a step with this batch
                raise UserError(f"Split {self.split.name!r}: no image of a whole batch can be decoded; fix the data.")
            yield index, images
