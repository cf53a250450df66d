"""Sources that are read row by row instead of being downloaded first."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from timm_wsms.data import columns
from timm_wsms.data.decode import decode, decode_cropped
from timm_wsms.data.high_bit_depth import ValueRange
from timm_wsms.data.hub_source import Source, one_line, open_source, pick_split
from timm_wsms.data.jpeg_crop import JpegCrop
from timm_wsms.data.settings import DataSettings
from timm_wsms.data.split_names import parse_split
from timm_wsms.errors import UserError

if TYPE_CHECKING:
    import datasets

SHARD = 10**9  # more than the rows of any shard


class Row(NamedTuple):
    """One image, not decoded.

    Attributes:
        index: its number in the split.
        label: its class.
        image: {"bytes": …, "path": …}.
    """

    index: int  # type: ignore[assignment]  # takes the place of tuple.index, which nobody calls
    label: int
    image: dict[str, Any]


@dataclass
class Stream:
    """Images and labels of one split that are read on the fly, unlike those of a `Split`.

    An image's index is 10⁹ times the number of its shard (usually a file of the source) plus its row in there: the same
    in every epoch, whatever the number of processes and workers.

    Attributes:
        name: the split's name in the source.
        size: how many images it has.
        class_names: one per class.
        rows: the source.
        columns: those of `rows`, with undecoded images.
        limit: number of rows to read; None reads all.
        object_sizes: not known.
        skipped: none is left out before training.
        numbers: the class of each label in the files, where they have the classes in another order; int64 (labels,).
        value_range: as in `Split`.
        found: as in `Split`.
    """

    name: str
    size: int
    class_names: list[str]
    rows: "datasets.IterableDataset"
    columns: columns.Columns
    limit: int | None = None
    object_sizes: None = None
    skipped: int = 0
    numbers: np.ndarray | None = None
    value_range: ValueRange | None = None
    found: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.size

    @property
    def shards(self) -> int:
        """Number of parts that can be read independently; one if there is a limit."""
        return self.rows.num_shards if self.limit is None else 1

    def read(self, shard: int) -> Iterator[Row]:
        """Reads a shard from its beginning, without decoding.

        Raises:
            UserError: if it cannot be read, or a label is missing or not one of the classes.
        """
        if self.limit is None:
            return self._read(shard)
        return islice(chain.from_iterable(map(self._read, range(self.rows.num_shards))), self.limit)

    def _read(self, shard: int) -> Iterator[Row]:
        rows = iter(self.rows.shard(num_shards=self.rows.num_shards, index=shard))
        row = 0
        while (values := self._next(rows)) is not None:
            label = columns.UNLABELLED if values[self.columns.label] is None else values[self.columns.label]
            known = len(self.class_names if self.numbers is None else self.numbers)
            if not 0 <= label < known:
                place = f"{row} of split {self.name!r}, shard {shard},"
                raise UserError(columns.bad_label(place, label, self.columns.label, self.class_names))
            label = label if self.numbers is None else int(self.numbers[label])
            yield Row(shard * SHARD + row, label, values[self.columns.image])
            row += 1

    def _next(self, rows: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        try:
            return next(rows, None)
        except MemoryError:
            raise
        except Exception as error:  # the readers and the network may raise anything
            raise UserError(
                f"Split {self.name!r} cannot be read any further; check the network and the data, then continue with"
                f" --resume auto. {one_line(error)}"
            ) from error

    def image(self, index: int, undecoded: dict[str, Any]) -> Image.Image:
        """One image, in RGB.

        Args:
            index: its number.
            undecoded: the `image` of its `Row`.

        Raises:
            BadImageError: if it cannot be decoded.
        """
        shard, row = divmod(index, SHARD)
        return decode(undecoded, f"{self.name}, shard {shard}", row, self.value_range)

    def cropped(self, index: int, undecoded: dict[str, Any], *, crop: JpegCrop) -> np.ndarray:
        """A crop of one image, uint8 (h, w, 3); arguments and errors as for `image`."""
        shard, row = divmod(index, SHARD)
        return decode_cropped(undecoded, f"{self.name}, shard {shard}", row, crop, self.value_range)


def open_streams(settings: DataSettings) -> tuple[Stream, Stream]:
    """Opens the streams to train on and to evaluate on. No row is read.

    Args:
        settings: `source`, `config`, `num_classes` and the names, sizes and limits of splits are used.

    Raises:
        UserError: if the source, a split or a column is missing, or it is not known how many images or classes a split
            has.
    """
    for name in (settings.train_split, settings.test_split):
        if parse_split(name).is_part or settings.holdout is not None:
            raise UserError(
                f"a stream has no parts such as {name!r} and no {settings.option('holdout')}; leave out"
                f" {settings.option('streaming')}."
            )
    source = open_source(settings)
    names = [pick_split(source.splits, settings, setting) for setting in ("train_split", "test_split")]
    rows = source.splits[names[0]]
    if rows.features is None:
        raise UserError(
            f"{settings.option('source')} {settings.source!r} does not say what its columns hold; leave out"
            f" {settings.option('streaming')}."
        )
    both = source.find_columns(names[0], settings)
    declared = getattr(rows.features[both.label], "names", None) or list(map(str, range(settings.num_classes or 0)))
    if not declared:
        raise UserError(
            f"Column {both.label!r} of the stream holds no class labels; set {settings.option('num_classes')} if it"
            f" holds integers, or leave out {settings.option('streaming')}."
        )
    stored = source.names_in(both.label)
    class_names, numbers = columns.merge_names({name: stored.get(name, declared) for name in names})
    columns.check_count(class_names, settings)
    source.remarks += source.unused(names)
    train, test = (
        _stream(source, part, name, class_names, numbers[name], both, settings)
        for part, name in zip(("train", "test"), names, strict=True)
    )
    return train, test


def _stream(
    source: Source,
    part: str,
    name: str,
    class_names: list[str],
    numbers: np.ndarray,
    both: columns.Columns,
    settings: DataSettings,
) -> Stream:
    import datasets

    size, limit = (getattr(settings, f"{part}_{what}") for what in ("size", "limit"))
    rows = source.splits[name]
    declared = (rows.info.splits or {}).get(name)
    if size is None:
        size = source.sizes.get(name, None if declared is None else declared.num_examples)
    if size == 0:
        raise UserError(f"Split {name!r} is empty; set {settings.option(f'{part}_split')} to another.")
    if size is None and limit is None:
        option = settings.option(f"{part}_size")
        raise UserError(f"The stream does not say how many images split {name!r} has; set {option}.")
    rows = rows.select_columns(list(both)).cast_column(both.image, datasets.Image(decode=False))
    least = min(n for n in (size, limit) if n is not None)
    other_order = None if np.array_equal(numbers, np.arange(len(numbers))) else numbers
    found = {"passed_over": source.passed_over.get(name, {}), "beside": source.passed_over.get("", {})}
    return Stream(
        name,
        least,
        class_names,
        rows,
        both,
        limit,
        numbers=other_order,
        value_range=settings.value_range,
        found={**found, "remarks": source.remarks},
    )
