"""Images and labels of one split, where they can be read in any order."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from timm_wsms.data.decode import ValueRange, decode, decode_cropped
from timm_wsms.data.jpeg_crop import JpegCrop

if TYPE_CHECKING:
    import datasets

LARGEST_SIDE = 64  # pixels; larger images are decoded again each time they are needed
MEMORY_LIMIT = 4 * 2**30  # bytes of decoded pixels that one split may keep


@dataclass
class Split:
    """Images and labels of one split, in the source's order. An image's index is its place in here, 0 to n - 1.

    Attributes:
        name: the split's name in the source.
        labels: int64 (n,), classes counted from 0.
        class_names: one per class.
        pixels: uint8 (n, H, W, 3), if the images are kept decoded: all of one size, at most 64 pixels a side.
        rows: otherwise, the rows that they are decoded from one by one.
        image_column: the column of `rows`.
        object_sizes: int64 (n,), side in pixels of what each image shows; None where that is not known.
        skipped: number of rows already left out because they could not be decoded (never of those in `rows`).
        value_range: black and white of images of more than 8 bits whose files do not say it.
        places: int64 (n,), each image's row in the source's split; None: its index.
        found: what the source says about it, for `summary`: files passed over, and remarks.
    """

    name: str
    labels: np.ndarray
    class_names: list[str]
    pixels: np.ndarray | None = None
    rows: "datasets.Dataset | None" = None
    image_column: str = ""
    object_sizes: np.ndarray | None = None
    skipped: int = 0
    value_range: ValueRange | None = None
    places: np.ndarray | None = None
    found: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: "Sequence[int] | np.ndarray") -> "Split":
        """Some of the images, in the order given."""
        chosen = np.asarray(indices, np.int64)
        return replace(
            self,
            labels=self.labels[chosen],
            rows=None if self.rows is None else self.rows.select(chosen),
            pixels=None if self.pixels is None else self.pixels[chosen],
            object_sizes=None if self.object_sizes is None else self.object_sizes[chosen],
            places=self.source_rows[chosen],
        )

    @property
    def source_rows(self) -> np.ndarray:
        """Each image's row in the source's split, int64 (n,)."""
        return np.arange(len(self)) if self.places is None else self.places

    def image(self, index: int) -> Image.Image:
        """One image, in RGB.

        Raises:
            BadImageError: if it cannot be decoded.
        """
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index])
        return decode(self.undecoded(index), self.name, self._row(index), self.value_range)

    def cropped(self, index: int, *, crop: JpegCrop) -> np.ndarray:
        """A crop of one image, uint8 (h, w, 3).

        Raises:
            BadImageError: if it cannot be decoded.
        """
        if self.pixels is not None:
            return np.array(crop(Image.fromarray(self.pixels[index])))
        return decode_cropped(self.undecoded(index), self.name, self._row(index), crop, self.value_range)

    def _row(self, index: int) -> int:
        return index if self.places is None else int(self.places[index])

    def undecoded(self, index: int) -> dict[str, Any]:
        """One image of `rows`, as {"bytes": …, "path": …}."""
        assert self.rows is not None
        return self.rows[index][self.image_column]


def fits_in_memory(count: int, height: int, width: int) -> bool:
    """Whether `count` images of `height` × `width` pixels are kept decoded."""
    return max(height, width) <= LARGEST_SIDE and count * height * width * 3 <= MEMORY_LIMIT
