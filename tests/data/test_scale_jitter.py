"""Crops of images whose object is shown at another size, against `rescale_object` and a crop of what it gives."""

import io
import math
import random
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms.functional import resized_crop

from tests.helpers.preprocessing import preprocessing
from tests.helpers.streams import write_shards
from timm_wsms.data import DataSettings, Split, TimmAugmentation, load_data, load_splits, make_loader, train_transform
from timm_wsms.data.decode import undecoded
from timm_wsms.data.jpeg_crop import JpegCrop
from timm_wsms.data.scale_jitter import ScaleJitterCrop, View
from timm_wsms.errors import UserError
from timm_wsms.object_scaling import rescale_object

BORDERS = ["mean", "edge", "reflect", "blur"]
CONFIG = preprocessing(48, 40)
PLAIN_CROP = TimmAugmentation(scale=(0.3, 1.0), hflip=0.5, color_jitter=None)
JITTER = DataSettings(augmentation="timm", scale_jitter=(0.5, 2.0), timm=PLAIN_CROP, workers=0)


def picture(height: int = 120, width: int = 160, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3): smooth, so that resampling it twice, as the reference does, hardly differs from once."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][..., None]
    waves, phases = rng.uniform(0.5, 2, (2, 3)), rng.uniform(0, 6.28, (2, 3))
    return (127.5 + 120 * np.sin(waves[0] * 6.28 * y + phases[0]) * np.cos(waves[1] * 6.28 * x + phases[1])).astype(
        np.uint8
    )


def crop_of(
    size: tuple[int, int], scale: tuple[float, float] = (0.3, 1.0), **more
) -> RandomResizedCropAndInterpolation:
    return RandomResizedCropAndInterpolation(size, scale=scale, interpolation="bicubic", **more)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("factor", [0.4, 0.75, 1.0, 1.7])
@pytest.mark.parametrize("box", [(0, 0, 120, 160), (10, 30, 100, 90), (40, 50, 60, 80)])
def test_a_view_is_the_crop_of_the_rescaled_image(border, factor, box):
    pixels = picture()
    jittered = ScaleJitterCrop(crop_of((96, 112)), (factor, factor), border)
    shown = JpegCrop(jittered)  # resizes arrays with PyTorch, as the loader does for JPEGs
    assert shown.crop is jittered
    canvas = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    canvas = rescale_object(canvas, factor, border)  # the whole image, before any crop
    expected = resized_crop(canvas, *box, [96, 112], antialias=True)[0].permute(1, 2, 0).numpy()
    found = np.asarray(jittered.render(pixels, View(factor, box, (120, 160)), "bicubic", pillow), np.float32)
    differ = np.abs(found - expected)
    assert found.shape == (96, 112, 3)
    assert differ.mean() < (3 if border == "blur" else 2)  # a blurred background is made from a thumbnail
    # What is off by more is the line where image and border meet, which is rounded to whole pixels.
    assert (differ > 12).mean() < 0.05
    moved = np.abs(np.roll(found, 6, 0) - expected)  # the test would notice a crop from elsewhere
    assert moved.mean() > 1.5 * differ.mean() + 1


def pillow(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling[interpolation.upper()]))


def test_at_size_one_it_is_timms_crop():
    image, crop = Image.fromarray(picture()), crop_of((96, 112))
    jittered = ScaleJitterCrop(crop, (1.0, 1.0), "mean")
    for seed in range(5):
        random.seed(seed)
        random.random()  # the size is drawn first
        expected = np.asarray(crop(image), np.int64)
        random.seed(seed)
        assert np.abs(np.asarray(jittered(image), np.int64) - expected).max() <= 1


@pytest.mark.parametrize("border", BORDERS)
def test_a_jpeg_that_is_not_decoded_gives_the_crop_of_the_decoded_image(border):
    pixels = picture(600, 800)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=95)
    crop = JpegCrop(ScaleJitterCrop(crop_of((64, 64), (0.1, 1.0)), (0.3, 2.0), border))
    seen = []
    for seed in range(12):  # some of them from an image decoded at 1/2, 1/4 or 1/8
        random.seed(seed)
        expected = np.asarray(crop(Image.open(file).convert("RGB")), np.int64)
        after = random.getstate()
        random.seed(seed)
        found = np.asarray(crop.from_file(file.getvalue(), Image.open(file)), np.int64)
        assert random.getstate() == after  # as many draws, in the same order
        seen.append(np.abs(found - expected))
    assert np.mean(seen) < 2 and np.percentile(seen, 99) < 16
    assert len({each.tobytes() for each in seen}) > 1


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.7)])
def test_a_crop_of_a_shrunk_image_shows_at_least_the_smallest_crops_part_of_it(scale):
    image, crop = Image.new("RGB", (160, 120)), ScaleJitterCrop(crop_of((64, 64), scale), (0.15, 0.9), "mean")
    random.seed(0)
    parts, whole = [], 0
    for _ in range(400):
        factor, (top, left, height, width), _ = crop.draw(image)
        shown_height, shown_width = 120 * factor, 160 * factor  # on the canvas, in its middle
        down = min(top + height, 60 + shown_height / 2) - max(top, 60 - shown_height / 2)
        across = min(left + width, 80 + shown_width / 2) - max(left, 80 - shown_width / 2)
        parts.append(max(0, down) * max(0, across) / (shown_height * shown_width))
        whole += (height, width) == (120, 160)
    assert min(parts) >= scale[0] * (1 - 1e-9) and max(parts) == pytest.approx(1)
    assert whole < 100  # most were drawn, not replaced by the whole canvas


def test_sizes_are_drawn_uniformly_in_their_logarithm():
    crop = ScaleJitterCrop(crop_of((64, 64), (1.0, 1.0)), (0.5, 2.0), "mean")
    random.seed(0)
    drawn = np.log2([crop.draw(Image.new("RGB", (160, 120))).factor for _ in range(2000)])
    assert -1 <= drawn.min() < -0.99 and 0.99 < drawn.max() <= 1
    shares = np.histogram(drawn, 4, (-1, 1))[0] / 2000
    assert np.abs(shares - 0.25).max() < 0.04  # four standard deviations


def split_of(count: int = 12, kind: str = "jpeg") -> Split:
    files = []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(picture(90 + number, 100, number)).save(file, kind)
        files.append({"bytes": file.getvalue(), "path": None})
    table = datasets.Dataset.from_dict({"p": files}, features=datasets.Features({"p": datasets.Image()}))
    return Split("train", np.arange(count), list("abcdefghijkl"), rows=undecoded(table, "p"), image_column="p")


def images_of(split, settings: DataSettings, *, epoch: int = 1, seed: int = 3, **arguments) -> dict[int, torch.Tensor]:
    arguments = {"batch_size": 4, "train": True, "seed": seed, **arguments}
    loader = make_loader(split, settings, CONFIG, **arguments)
    loader.set_epoch(epoch)
    return {int(i): image for batch in loader for i, image in zip(batch.index, batch.images, strict=True)}


@pytest.mark.parametrize("decoding", ["fast", "full"])
def test_draws_follow_from_seed_epoch_and_index_alone(decoding):
    split, settings = split_of(), replace(JITTER, decoding=decoding)
    expected = images_of(split, settings)
    assert len(expected) == 12
    several = images_of(split, replace(settings, workers=2), batch_size=3)
    for rank in (0, 1):
        several |= images_of(split, settings, batch_size=2, rank=rank, world_size=2)
    assert several.keys() == expected.keys()
    assert all(torch.equal(several[index], image) for index, image in expected.items())
    for other in ({"epoch": 2}, {"seed": 4}):
        assert not any(torch.equal(images_of(split, settings, **other)[i], expected[i]) for i in expected)


def test_a_stream_shows_what_the_same_images_map_style_show(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = str(write_shards(tmp_path / "shards", train=(24,), test=(1,)))  # one shard: an image's index is its row
    settings = replace(JITTER, source=source, shuffle_buffer=8)
    found = images_of(load_data(replace(settings, streaming=True), 0)[0], replace(settings, streaming=True))
    expected = images_of(load_splits(settings, 0)[0], settings)
    assert found.keys() == expected.keys() and len(found) == 24
    assert all(torch.equal(found[index], image) for index, image in expected.items())


def test_a_batch_is_what_the_transform_draws_for_each_image():
    split, transform = split_of(kind="png"), train_transform(CONFIG, JITTER)
    for index, image in images_of(split, JITTER).items():
        seeds = [int(word) for word in np.random.SeedSequence((3, 1, 1, index)).generate_state(3)]
        random.seed(seeds[0])
        np.random.seed(seeds[1])
        torch.manual_seed(seeds[2])
        assert torch.equal(transform(split.image(index)), image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_jitter": (2.0, 0.5)}, r"data\.scale_jitter \[2, 0\.5\] must be the smallest and the largest size"),
        ({"scale_jitter": (0.5, math.inf)}, r"data\.scale_jitter"),
        ({"timm": TimmAugmentation(train_crop_mode="rkrc")}, r"data\.timm\.train_crop_mode"),
    ],
)
def test_sizes_and_crops_that_do_not_go_together_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        train_transform(CONFIG, replace(JITTER, **change))
