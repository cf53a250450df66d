"""Parts of the input pipeline, each by itself: what the fast one does, what else was tried, what bounds it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import torchvision
from PIL import Image

from timm_wsms.data import DataSettings, Split, TimmAugmentation, train_transform
from timm_wsms.data.image_dataset import collate
from timm_wsms.data.jpeg_crop import JpegCrop, decode_crop, resize
from timm_wsms.data.random_numbers import seed_random_numbers
from timm_wsms.data.transforms import normalize, split_off_crop

SIDE = 224
BATCH = 20

Candidates = dict[str, Callable[[], object]]


@dataclass
class Round:
    """The files of a round and, for each, what every part of the pipeline is given.

    Attributes:
        part: the images.
        config: timm's data config.
    """

    part: Split
    config: dict

    def __post_init__(self) -> None:
        settings = DataSettings(augmentation="timm", timm=TimmAugmentation(color_jitter=None))
        crop, self.rest = split_off_crop(train_transform(self.config, settings, normalize=False))
        assert isinstance(crop, JpegCrop)
        self.crop = crop
        self.paths = [self.part.rows[index]["image"]["path"] for index in range(len(self.part))]
        self.files = [Path(path).read_bytes() for path in self.paths]
        self.sizes = [opened(file).size for file in self.files]
        seed_random_numbers(0)
        draw = crop.crop.get_params
        self.boxes = [draw(Image.new("1", size), crop.crop.scale, crop.crop.ratio) for size in self.sizes]

    @cached_property
    def cuts(self) -> list[np.ndarray]:
        """The crops, decoded."""
        return [decode_crop(*each, (SIDE, SIDE)) for each in zip(self.files, self.sizes, self.boxes, strict=True)]

    @cached_property
    def images(self) -> list[np.ndarray]:
        """The crops, resized."""
        return [resize(pixels, (SIDE, SIDE), "bicubic") for pixels in self.cuts]

    def differences(self) -> dict[str, float]:
        """How much the crops' pixels differ from timm's, of 255: mean, 99th percentile, greatest."""
        found = []
        for number, file in enumerate(self.files):
            seed_random_numbers(number)
            ours = self.crop.from_file(file, opened(file)).astype(np.int16)
            seed_random_numbers(number)
            found.append(np.abs(ours - np.asarray(self.crop(opened(file).convert("RGB")))))
        differ = np.stack(found)
        return {
            "mean": round(float(differ.mean()), 3),
            "p99": float(np.percentile(differ, 99)),
            "max": int(differ.max()),
        }

    def stages(self) -> Candidates:
        """What the fast pipeline does, in its order, without color jitter."""
        numbers = range(len(self.files))
        flipped = [(index, self._flip(image)) for index, image in zip(numbers, self.images, strict=True)]
        batches = [collate(flipped[i : i + BATCH])[1] for i in range(0, len(flipped), BATCH)]
        mean, std = self.config["mean"], self.config["std"]
        return {
            "stage_read": lambda: [Path(self.part.rows[index]["image"]["path"]).read_bytes() for index in numbers],
            "stage_seed": lambda: [seed_random_numbers(0, 1, 2, index) for index in numbers],
            "stage_head": lambda: [opened(file).getexif() for file in self.files],
            "stage_decode": lambda: [
                decode_crop(*each, (SIDE, SIDE)) for each in zip(self.files, self.sizes, self.boxes, strict=True)
            ],
            "stage_resize": lambda: [resize(cut, (SIDE, SIDE), "bicubic") for cut in self.cuts],
            "stage_flip": lambda: [self._flip(image) for image in self.images],
            "stage_collate": lambda: [collate(flipped[i : i + BATCH]) for i in range(0, len(flipped), BATCH)],
            "stage_normalize": lambda: [normalize(batch, mean, std) for batch in batches],
        }

    def _flip(self, image: np.ndarray) -> np.ndarray:
        return self.rest(torch.from_numpy(image).permute(2, 0, 1)).numpy()

    def decoders(self) -> Candidates:
        """Decoding in other ways, whole images unless the name says otherwise."""
        simple = simplejpeg.decode_jpeg
        least = [
            (SIDE * size[1] // box[2], SIDE * size[0] // box[3])
            for size, box in zip(self.sizes, self.boxes, strict=True)
        ]

        def blocks_kept() -> None:
            Image.core.set_blocks_max(8)  # as the environment's PILLOW_BLOCKS_MAX=8
            for file in self.files:
                opened(file).convert("RGB")
            Image.core.set_blocks_max(0)
            Image.core.clear_cache()

        return {
            "decode_pillow": lambda: [opened(file).convert("RGB") for file in self.files],
            "decode_pillow_blocks_kept": blocks_kept,
            "decode_pillow_draft": lambda: [drafted(*each) for each in zip(self.files, self.boxes, strict=True)],
            "decode_torchvision": lambda: [
                torchvision.io.decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8)) for file in self.files
            ],
            "decode_simplejpeg": lambda: [simple(file) for file in self.files],
            "decode_simplejpeg_any_eighths": lambda: [
                simple(file, min_height=height, min_width=width)
                for file, (height, width) in zip(self.files, least, strict=True)
            ],
            "decode_simplejpeg_fast_dct": lambda: [
                simple(file, fastdct=True, fastupsample=True) for file in self.files
            ],
        }

    def resizers(self) -> Candidates:
        """Resizing whole decoded images' crops with Pillow, from images or from what was decoded small."""
        images = [Image.fromarray(cut) for cut in self.cuts]
        bicubic = Image.Resampling.BICUBIC
        return {
            "resize_pillow": lambda: [image.resize((SIDE, SIDE), bicubic) for image in images],
            "resize_pillow_gap": lambda: [image.resize((SIDE, SIDE), bicubic, reducing_gap=2.0) for image in images],
        }


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def drafted(file: bytes, box: tuple[int, int, int, int]) -> Image.Image:
    """Decoded by Pillow at 1/2, 1/4 or 1/8 where that covers the crop."""
    image = opened(file)
    by = min(box[2:]) // SIDE
    if by >= 2:
        image.draft("RGB", (image.width // by, image.height // by))
    return image.convert("RGB")
