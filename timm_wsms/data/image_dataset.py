"""Decodes and transforms images one by one, in worker processes."""

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from timm_wsms.data.decode import BadImageError
from timm_wsms.data.random_numbers import random_numbers_kept, seed_random_numbers
from timm_wsms.data.split import Split
from timm_wsms.data.stream import Stream
from timm_wsms.data.transforms import split_off_crop, takes_pixels

SEMAPHORES = 4  # for each queue of a worker, and for the one that all of them share; PyTorch takes three


class TransformedImages(torch.utils.data.Dataset):
    """Maps (epoch, choice, index) to (index, transformed image), or to (index, what is wrong with the image).

    For a stream, the key is (epoch, choice, index, undecoded image). An image is uint8 (C, H, W).

    Args:
        split: where the images come from.
        transforms: each from a PIL image to uint8 (C, H, W); the choice is the number of one of them.
        channels: 3 for images in RGB, 1 for gray ones.
        seed: with the epoch and the index, seeds what the transform draws.
    """

    def __init__(
        self,
        split: Split | Stream,
        transforms: Sequence[Callable[[Image.Image], torch.Tensor]],
        channels: int,
        seed: tuple[int, ...],
    ):
        self.split, self.channels, self.seed = split, channels, seed
        self.steps = [split_off_crop(transform) for transform in transforms]
        self.takes_pixels = all(takes_pixels(transform) for _, transform in self.steps)

    def __getitems__(self, keys: list[tuple[Any, ...]]) -> list[tuple[int, np.ndarray | str]]:
        with random_numbers_kept():  # around a whole batch, since it takes a twentieth of an image's time
            return [self._sample(*key) for key in keys]

    def _sample(self, epoch: int, choice: int, index: int, *undecoded: Any) -> tuple[int, np.ndarray | str]:
        seed_random_numbers(*self.seed, epoch, index)
        crop, transform = self.steps[choice]
        try:
            if crop:
                pixels = self.split.cropped(index, *undecoded, crop=crop)
                return index, transform(self._as_input(pixels)).numpy()
            image = self.split.image(index, *undecoded)
        except BadImageError as error:  # as a value: raised in a worker, it would arrive wrapped in a traceback
            return index, str(error)
        return index, transform(image if self.channels == 3 else image.convert("L")).numpy()

    def _as_input(self, pixels: np.ndarray) -> Any:
        return torch.from_numpy(pixels).permute(2, 0, 1) if self.takes_pixels else Image.fromarray(pixels)


def collate(samples: list[tuple[int, np.ndarray | str]]) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
    """Stacks samples into (index, images uint8 (B, C, H, W), errors by index)."""
    index = torch.tensor([index for index, image in samples if isinstance(image, np.ndarray)], dtype=torch.int64)
    images = [image for _, image in samples if isinstance(image, np.ndarray)]
    errors = {index: error for index, error in samples if isinstance(error, str)}
    batch = torch.empty((len(images), *images[0].shape) if images else 0, dtype=torch.uint8)
    if torch.utils.data.get_worker_info() is not None and images:
        # The queue's own thread would do it, but when shared memory is full it drops the batch, and the training
        # process waits forever. Here the error reaches it.
        batch.share_memory_()
        index.share_memory_()
    for place, image in zip(batch.numpy(), images, strict=True):
        np.copyto(place, image)  # from (H, W, C) in memory, twice as fast as PyTorch
    return index, batch, errors


def outlive_stop_signals(_: int) -> None:
    """Lets a worker outlive signals sent to all processes: the training process needs it to finish its step.

    torchrun and Slurm send SIGTERM to workers too. They end only when the training process itself sends it.
    """
    if not hasattr(signal, "sigwaitinfo"):  # Linux has it
        return
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # comes to the thread, which sees the sender
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(training: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != training:
        pass
    os._exit(0)  # as torch's own workers do; it takes any other status for a failure


def _check_semaphores(workers: int) -> None:
    """Takes as many semaphores as workers need, which lie in shared memory, and releases them.

    Where they do not fit, a DataLoader fails half built, and prints a traceback when it is deleted.
    """
    try:
        _ = [torch.multiprocessing.Lock() for _ in range(SEMAPHORES * (workers + 2))]
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise RuntimeError("DataLoader worker cannot start: no shared memory is left") from error


class Keys:
    """A batch sampler that gets new batches in each epoch, since the workers outlive an epoch.

    Attributes:
        batches: the keys of each batch's images.
    """

    def __init__(self) -> None:
        self.batches: Iterable[list[Any]] = ()

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.batches)


class ImageWorkers:
    """Worker processes, or this process itself.

    Args:
        images: what is asked for each key.
        count: number of processes; 0 for none but this one.
    """

    def __init__(self, images: TransformedImages, count: int):
        self._keys = Keys()
        self._loader = torch.utils.data.DataLoader(
            images,
            batch_sampler=self._keys,
            num_workers=count,
            persistent_workers=count > 0,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlive_stop_signals,
            generator=torch.Generator(),  # its own, or else it would draw from the training's random numbers
        )
        if count:  # they start now, with nothing to do: a fork during gloo's collectives may hang forever
            _check_semaphores(count)
            iter(self._loader)

    def decode(self, batches: Iterable[list[Any]]) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[int, str]]]:
        """Yields (index, images, errors by index) for the keys of each batch, in their order.

        Raises:
            RuntimeError: if a worker dies; its message begins with "DataLoader worker".
        """
        self._keys.batches = batches
        try:
            yield from self._loader
        except (ConnectionError, EOFError) as error:
            if not self._loader.num_workers or "in DataLoader worker process" in str(error):  # while reading one
                raise
            # torch tells of a dead worker, unless it dies while its images are being fetched from it
            raise RuntimeError(f"DataLoader worker gone while sending images ({type(error).__name__})") from error
