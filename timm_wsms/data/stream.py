"""Sources that are read row by row, in place of being downloaded first."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from timm_wsms.data import columns
from timm_wsms.data.decode import decode
from timm_wsms.data.hub_source import empty_split, one_line, open_source, pick_split
from timm_wsms.data.jpeg_crop import JpegCrop
from timm_wsms.data.settings import DataSettings
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
    """Images and labels of one split, where a `Split` has them at hand.

    An image's index is 10⁹ times the number of its shard (a file of the source, mostly) plus its row in there: the same
    in every epoch, whatever the number of processes and workers.

    Attributes:
        name: the split's name in the source.
        size: how many images it has.
        class_names: one per class.
        rows: the source.
        columns: those of `rows`, with undecoded images.
        limit: read only the first so many rows.
        object_sizes: not known.
        skipped: none is left out before training.
    """

    name: str
    size: int
    class_names: list[str]
    rows: "datasets.IterableDataset"
    columns: columns.Columns
    limit: int | None = None
    object_sizes: None = None
    skipped: int = 0

    def __len__(self) -> int:
        return self.size

    @property
    def shards(self) -> int:
        """Number of parts that can be read each by itself; one if there is a limit."""
        return self.rows.num_shards if self.limit is None else 1

    def read(self, shard: int) -> Iterator[Row]:
        """Reads a shard from its beginning, without decoding.

        Raises:
            UserError: if it cannot be read, or a label is missing or none of the classes.
        """
        if self.limit is None:
            return self._read(shard)
        return islice(chain.from_iterable(map(self._read, range(self.rows.num_shards))), self.limit)

    def _read(self, shard: int) -> Iterator[Row]:
        rows = iter(self.rows.shard(num_shards=self.rows.num_shards, index=shard))
        row = 0
        while (values := self._next(rows)) is not None:
            label = columns.UNLABELLED if values[self.columns.label] is None else values[self.columns.label]
            if not 0 <= label < len(self.class_names):
                place = f"{row} of split {self.name!r}, shard {shard},"
                raise UserError(columns.bad_label(place, label, self.columns.label, self.class_names))
            yield Row(shard * SHARD + row, label, values[self.columns.image])
            row += 1

    def _next(self, rows: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        try:
            return next(rows, None)
        except MemoryError:
            raise
        except Exception as error:  # the many readers and the network raise many things
            raise UserError(
                f"Split {self.name!r} cannot be read any further; check the network and the data, then go on with"
                f" --resume auto. {one_line(error)}"
            ) from error

    def image(self, index: int, undecoded: dict[str, Any], *, crop: JpegCrop | None = None) -> Image.Image:
        """One image, in RGB, or a crop of it.

        Args:
            index: its number.
            undecoded: of its `Row`.
            crop: take this of it.

        Raises:
            BadImageError: if it cannot be decoded.
        """
        shard, row = divmod(index, SHARD)
        return decode(undecoded, f"{self.name}, shard {shard}", row, crop)


def open_streams(settings: DataSettings) -> tuple[Stream, Stream]:
    """Opens the streams to train on and to evaluate on. Of the rows none is read.

    Args:
        settings: of which `source`, `config`, `num_classes` and the names, sizes and limits of splits count.

    Raises:
        UserError: if the source, a split or a column is missing, or it is not known how many images or classes a split
            has.
    """
    found = open_source(settings)
    features = pick_split(found, settings, "train_split").features
    if features is None:
        raise UserError(
            f"{settings.option('source')} {settings.source!r} does not say what its columns hold; leave out"
            f" {settings.option('streaming')}."
        )
    both = columns.find_columns(found[settings.train_split], settings)
    class_names = getattr(features[both.label], "names", None) or list(map(str, range(settings.num_classes or 0)))
    if not class_names:
        raise UserError(
            f"Column {both.label!r} of the stream holds plain integers; set {settings.option('num_classes')}."
        )
    return _stream(found, "train", class_names, both, settings), _stream(found, "test", class_names, both, settings)


def _stream(
    found: dict[str, Any], part: str, class_names: list[str], both: columns.Columns, settings: DataSettings
) -> Stream:
    import datasets

    name, size, limit = (getattr(settings, f"{part}_{what}") for what in ("split", "size", "limit"))
    rows = pick_split(found, settings, f"{part}_split")
    declared = (rows.info.splits or {}).get(name)
    if size is None and declared is not None:
        size = declared.num_examples
    if size == 0:
        raise UserError(empty_split(settings, f"{part}_split"))
    if size is None and limit is None:
        option = settings.option(f"{part}_size")
        raise UserError(f"The stream does not say how many images split {name!r} has; set {option}.")
    rows = rows.select_columns(list(both)).cast_column(both.image, datasets.Image(decode=False))
    return Stream(name, min(n for n in (size, limit) if n is not None), class_names, rows, both, limit)
