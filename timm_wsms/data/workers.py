"""Processes that decode and transform images, a batch at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .per_image import TransformedImages, collate, outlive_stop_signals


class Keys:
    """A batch sampler that is told each epoch's batches anew, since the workers outlive an epoch.

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
        if count:  # they start now, with nothing to do: a fork amid gloo's collectives may hang for good
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
            if not self._loader.num_workers or "in DataLoader worker process" in str(error):  # met in reading an image
                raise
            # torch tells of a dead worker, unless it dies while its images are being fetched from it
            raise RuntimeError(f"DataLoader worker gone amid sending images ({type(error).__name__})") from error
