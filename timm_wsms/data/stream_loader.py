"""Batches of a stream, in an order that follows from (seed, epoch) alone and can be resumed anywhere."""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count, islice, zip_longest
from typing import Any, TypeVar

import numpy as np
import torch

from timm_wsms.data.loader_base import AUGMENTATION, ORDER, Batch, Loader
from timm_wsms.data.settings import DataSettings
from timm_wsms.data.stream import Row, Stream
from timm_wsms.errors import UserError

T = TypeVar("T")
AHEAD = 2  # batches that are read before they are asked for
SHARDS_PER_LANE = 16  # so that lanes are about equally long


class StreamLoader(Loader):
    """Loader of a stream. One thread reads it, worker processes decode.

    The order of an epoch is made of lanes: the shards are shuffled and dealt to them, each lane reads its shards one
    after the other and shuffles the rows through a buffer, and the lanes take turns. Of that order, process r of W
    takes the images r, r + W, r + 2W …, so that all of them together see the same images in a step whatever W is. It
    reads only its own lanes if W divides their number, otherwise others' too, without decoding what is not its own.

    All processes have the same number of steps, known beforehand. A lane that runs out of images before its steps end
    starts over with other shards; one that has more leaves out the last ones. `datasets` has such parts too (`shuffle`,
    `split_dataset_by_node`), but with these the order depends on W, on the number of workers and on its version.

    In evaluation lanes are not shuffled and end where they end. There `len` is what it would be if all were equally
    long.

    To begin mid-epoch, everything before is read again and dropped undecoded.
    """

    split: Stream

    def __init__(self, split: Stream, settings: DataSettings, config: dict[str, Any], **arguments: Any):
        super().__init__(split, settings, config, **arguments)
        self._workers = self._image_workers(config)

    def __iter__(self) -> Iterator[Batch]:
        labels: deque[dict[int, int]] = deque()  # of the batches that are being decoded

        def keys() -> Iterator[list[Any]]:
            for step, rows in enumerate(read_ahead(self._rows_of_batches(), AHEAD), self.start):
                labels.append({row.index: row.label for row in rows})
                size = self._drawn_size(step)
                yield [(self.epoch, size, row.index, row.image) for row in rows]

        for index, pixels in self._sound(self._workers.decode(keys())):
            of_batch = labels.popleft()
            if len(index):
                known = torch.tensor([of_batch[i] for i in index.tolist()]).to(self.device)
                images = self._augmented(self._normalized(index, pixels), index)
                yield Batch(index, images, known)

    def _augmented(self, images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        if not self._augment:
            return images
        seeds = ((self.seed, self.epoch, AUGMENTATION, i) for i in index.tolist())
        draws = [self._augment.draw(1, np.random.default_rng(seed)) for seed in seeds]
        of_batch = {what: torch.cat([drawn[what] for drawn in draws]).to(self.device) for what in draws[0]}
        return self._augment(images, of_batch)

    def _rows_of_batches(self) -> Iterator[list[Row]]:
        """This process's rows, from batch `start` on."""
        shards = self.split.shards
        # Evaluation has no order of its own: a lane for each process, if there are that many shards.
        lanes = lane_count(shards, self.settings.lanes) if self.train else min(shards, self.world_size)
        rows = take_turns([self._lane(number, lanes) for number in range(lanes)], self.rank, self.world_size)
        rows = islice(rows, self.start * self.batch_size, len(self) * self.batch_size if self.train else None)
        while batch := list(islice(rows, self.batch_size)):
            yield batch

    def _lane(self, number: int, lanes: int) -> Iterator[Row]:
        """The rows of one lane; endless in training."""
        if not self.train:
            yield from chain.from_iterable(map(self.split.read, range(number, self.split.shards, lanes)))
            return
        for again in count():
            key = (self.seed, self.epoch, ORDER, again)
            shards = np.random.default_rng(key).permutation(self.split.shards)[number::lanes].tolist()
            rows = chain.from_iterable(map(self.split.read, shards))
            if (first := next(rows, None)) is None:
                raise UserError(f"Split {self.split.name!r} is empty, or parts of it are; set data.lanes=1 for those.")
            size = -(-self.settings.shuffle_buffer // lanes)
            yield from shuffled(chain([first], rows), size, np.random.default_rng((*key, number)))


def lane_count(shards: int, wanted: int) -> int:
    """The number of lanes: as many as wanted, or fewer, so that each gets about the same number of shards."""
    while shards % wanted and shards < SHARDS_PER_LANE * wanted:
        wanted //= 2
    return wanted


def shuffled(items: Iterator[T], size: int, rng: np.random.Generator) -> Iterator[T]:
    """Shuffles through a buffer: yields one of `size` items drawn at random, puts the next in its place, and so on."""
    buffer = list(islice(items, size))
    for item in items:
        place = int(rng.integers(len(buffer)))
        yield buffer[place]
        buffer[place] = item
    yield from (buffer[place] for place in rng.permutation(len(buffer)))


def take_turns(lanes: list[Iterator[T]], rank: int, world_size: int) -> Iterator[T]:
    """Items rank, rank + W, rank + 2W … of the order in which the lanes take turns, each ending where it ends.

    Item g of that order is number g // L of lane g % L, so every item belongs to exactly one process.
    """
    together = math.lcm(len(lanes), world_size)
    mine = range(rank, together, world_size)
    own = [islice(lanes[g % len(lanes)], g // len(lanes), None, together // len(lanes)) for g in mine]
    nothing = object()
    return (item for turn in zip_longest(*own, fillvalue=nothing) for item in turn if item is not nothing)  # type: ignore[misc]


def read_ahead(items: Iterator[T], number: int) -> Iterator[T]:
    """The same items, the next `number` of them fetched by a thread before they are asked for."""
    end = object()
    reader = ThreadPoolExecutor(1)
    try:
        pending = deque(reader.submit(next, items, end) for _ in range(number))
        while (item := pending.popleft().result()) is not end:
            pending.append(reader.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        reader.shutdown(cancel_futures=True)
