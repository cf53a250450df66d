"""Crops taken from JPEG files against timm's, taken from images that Pillow has decoded."""

import io
import random

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation, ResizeKeepRatio

from tests.helpers.preprocessing import preprocessing
from timm_wsms.data import DataSettings, Split, TimmAugmentation, make_loader, train_transform
from timm_wsms.data.decode import undecoded
from timm_wsms.data.jpeg_crop import JpegCrop, decode_crop, needs_only_decoding, resize
from timm_wsms.data.transforms import split_off_crop

CONFIG = preprocessing(40, 32, interpolation="bicubic")
FORMS = {
    "color": {"quality": 90},
    "444": {"quality": 95, "subsampling": 0},
    "progressive": {"quality": 85, "progressive": True},
    "gray": {"quality": 90},
}


def picture(width: int, height: int, grain: int = 20) -> np.ndarray:
    """uint8 (H, W, 3): shades that change within so many pixels, and a little noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // grain + 2, width // grain + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return (smooth + rng.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8)


def jpeg(width: int = 233, height: int = 171, form: str = "color", grain: int = 20) -> bytes:
    image = Image.fromarray(picture(width, height, grain)).convert("L" if form == "gray" else "RGB")
    file = io.BytesIO()
    image.save(file, "jpeg", **FORMS[form])
    return file.getvalue()


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def differences(crop: RandomResizedCropAndInterpolation, file: bytes, times: int) -> np.ndarray:
    """int (times, …): pixels of crops from the file minus those of timm's, drawn with the same seeds."""
    whole = opened(file).convert("RGB")
    results = []
    for seed in range(times):
        random.seed(seed)
        expected = crop(whole)
        after = random.getstate()
        random.seed(seed)
        image = JpegCrop(crop).from_file(file, opened(file))
        assert random.getstate() == after  # as many draws, in the same order
        assert image.shape == (*expected.size[::-1], 3) and image.dtype == np.uint8
        results.append(image.astype(np.int64) - np.asarray(expected))
    return np.abs(np.stack(results))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_decoded_at_full_size_has_pillows_bits(form):
    file = jpeg(form=form)
    pixels = decode_crop(file, (233, 171), (13, 29, 101, 150), (60, 90))  # half of the size would not cover it
    np.testing.assert_array_equal(pixels, np.asarray(opened(file).convert("RGB"))[13:114, 29:179])
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
def test_without_scaling_pixels_differ_by_rounding_only(form, interpolation):
    crop = RandomResizedCropAndInterpolation((170, 230), interpolation=interpolation)
    differ = differences(crop, jpeg(form=form), 12)
    assert differ.max() <= 2 and differ.mean() < 0.1


@pytest.mark.parametrize(("width", "height"), [(1601, 1203), (900, 1199)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_with_scaling_pixels_differ_little(width, height, interpolation):
    crop = RandomResizedCropAndInterpolation((70, 60), interpolation=interpolation)
    differ = differences(crop, jpeg(width, height, grain=80), 12)
    assert differ.mean() < 3 and differ.mean(axis=(1, 2, 3)).max() < 6 and np.percentile(differ, 99) <= 16


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(3, 5, 601, 799), (331, 222, 402, 707), (101, 19, 1100, 1301)])
def test_with_scaling_edges_move_by_half_a_decoded_pixel_and_the_rest_is_noise(box, interpolation):
    file, (top, left, height, width), size = jpeg(1601, 1203), box, (140, 150)
    pixels = decode_crop(file, (1601, 1203), box, size)
    scale = next(scale for scale in (1 / 8, 1 / 4, 3 / 8, 1 / 2) if min(height * scale / 140, width * scale / 150) >= 1)
    moved = [round(edge * scale) / scale for edge in (left, top, left + width, top + height)]
    assert pixels.shape == ((moved[3] - moved[1]) * scale, (moved[2] - moved[0]) * scale, 3)
    whole = opened(file).convert("RGB")
    expected = whole.resize(size[::-1], Image.Resampling[interpolation.upper()], box=moved)
    differ = np.abs(resize(pixels, size, interpolation).astype(np.int64) - np.asarray(expected))
    assert differ.mean() < 2 and np.percentile(differ, 99) <= 8


def test_the_smallest_scale_that_covers_the_crop_is_decoded():
    file = jpeg(800, 640)
    for box, least, size in [
        ((0, 0, 640, 800), (320, 400), (320, 400)),  # 1/2
        ((0, 0, 640, 800), (321, 400), (640, 800)),
        ((0, 0, 640, 800), (240, 300), (240, 300)),  # 3/8
        ((0, 0, 640, 800), (150, 150), (160, 200)),  # 1/4
        ((0, 0, 640, 800), (10, 20), (80, 100)),  # 1/8, the smallest there is
        ((100, 40, 320, 400), (80, 100), (80, 100)),
        ((100, 40, 320, 400), (81, 100), (120, 150)),
        ((100, 40, 320, 200), (80, 100), (160, 100)),  # 1/4 would do for the height
        ((100, 40, 160, 400), (80, 100), (80, 200)),  # and here for the width
        ((100, 40, 20, 30), (81, 100), (20, 30)),
    ]:
        assert decode_crop(file, (800, 640), box, least).shape == (*size, 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(31, 45), (224, 200)])
def test_resize_is_pillows_but_for_rounding(interpolation, size):
    pixels = picture(120, 90)
    expected = Image.fromarray(pixels).resize(size[::-1], Image.Resampling[interpolation.upper()])
    differ = np.abs(resize(pixels, size, interpolation).astype(np.int64) - np.asarray(expected))
    assert differ.max() <= 2 and differ.mean() < 0.1


def test_what_pillow_reads_in_spite_of_damage_is_read_by_pillow():
    crop = RandomResizedCropAndInterpolation((60, 60), interpolation="bicubic")
    file = jpeg()
    damaged = file[: len(file) // 2] + b"\xff\xd9" + file[len(file) // 2 :]  # "end of image" in its middle
    with pytest.raises(ValueError):
        decode_crop(damaged, (233, 171), (0, 0, 171, 233), (60, 60))
    opened(damaged).load()  # does not raise
    assert differences(crop, damaged, 4).max() == 0
    truncated = file[: len(file) // 2]
    with pytest.raises(OSError, match="truncated"):
        JpegCrop(crop).from_file(truncated, opened(truncated))


def test_what_needs_more_than_decoding():
    def saved(image: Image.Image, kind: str, **options) -> Image.Image:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return opened(file.getvalue())

    image, rotated = Image.fromarray(picture(60, 50)), Image.Exif()
    assert needs_only_decoding(saved(image, "jpeg")) and needs_only_decoding(saved(image.convert("L"), "jpeg"))
    for orientation in range(1, 9):
        rotated[0x0112] = orientation
        assert needs_only_decoding(saved(image, "jpeg", exif=rotated)) == (orientation == 1)
    assert not needs_only_decoding(saved(image.convert("CMYK"), "jpeg"))
    assert not needs_only_decoding(saved(image, "png"))
    assert not needs_only_decoding(saved(image, "mpo", save_all=True, append_images=[image]))


@pytest.mark.parametrize(
    ("given", "config"),
    [
        ({"decoding": "full"}, {}),
        ({"timm": TimmAugmentation(interpolation="lanczos")}, {}),
        ({"timm": TimmAugmentation(interpolation="nearest")}, {}),
        ({"timm": TimmAugmentation(train_crop_mode="rkrc")}, {}),
        ({}, {"input_size": (1, 40, 32), "mean": (0.4,), "std": (0.2,)}),
        ({"augmentation": "none"}, {}),
    ],
)
def test_where_timms_own_crop_stays(given, config):
    transform = train_transform({**CONFIG, **config}, DataSettings(**{"augmentation": "timm", **given}))
    assert split_off_crop(transform) == (None, transform)
    first = RandomResizedCropAndInterpolation if "augmentation" not in given else object
    if "timm" in given and given["timm"].train_crop_mode:
        first = ResizeKeepRatio
    assert isinstance(transform.transforms[0], first)


@pytest.mark.parametrize("interpolation", [None, "random", "bilinear"])
def test_all_but_the_crop_is_timms(interpolation):
    augmentation = TimmAugmentation(interpolation=interpolation, auto_augment="rand-m9-mstd0.5", re_prob=0.5)
    settings = DataSettings(augmentation="timm", timm=augmentation)
    crop, rest = split_off_crop(train_transform(CONFIG, settings))
    timms = train_transform(CONFIG, DataSettings(augmentation="timm", timm=augmentation, decoding="full"))
    assert isinstance(crop, JpegCrop)
    image = Image.fromarray(picture(80, 70))
    results = []
    for transform in (lambda image: rest(crop(image)), timms):
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        results.append(torch.stack([transform(image) for _ in range(6)]))
    assert torch.equal(*results) and not torch.equal(results[0][0], results[0][1])


def test_a_loader_sees_the_same_crops_either_way_and_whatever_its_workers():
    files = [jpeg(150 + 7 * number, 130 + 5 * number, grain=80) for number in range(8)]
    table = datasets.Dataset.from_dict(
        {"picture": [{"bytes": file, "path": None} for file in files]},
        features=datasets.Features({"picture": datasets.Image()}),
    )
    split = Split("train", np.arange(8), list("abcdefgh"), rows=undecoded(table, "picture"), image_column="picture")
    augmentation = TimmAugmentation(color_jitter=None, vflip=0.5)

    def batch(decoding: str, workers: int):
        settings = DataSettings(augmentation="timm", timm=augmentation, decoding=decoding, workers=workers)
        loader = make_loader(split, settings, CONFIG, batch_size=8, train=True, seed=4)
        loader.set_epoch(2)
        return next(iter(loader))

    fast, full, in_worker = batch("fast", 0), batch("full", 0), batch("fast", 1)
    assert torch.equal(fast.index, full.index) and torch.equal(fast.images, in_worker.images)
    shades = (fast.images - full.images).abs().mul(torch.tensor(CONFIG["std"]).view(-1, 1, 1) * 255)
    assert 0 < shades.mean() < 2  # not the very same computation, but the same crop and flips
    assert (fast.images - full.images.roll(1, 0)).abs().mul(255).mean() > 20
