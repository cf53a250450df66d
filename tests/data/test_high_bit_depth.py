"""Images of more than 8 bits a channel: the right shades, or the file's name and what to do."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from timm.data.transforms import RandomResizedCropAndInterpolation

from timm_wsms.data import DataSettings, load_data, load_splits
from timm_wsms.data.decode import BadImageError, decode
from timm_wsms.data.jpeg_crop import JpegCrop
from timm_wsms.errors import UserError

RAMP = np.linspace(0, 1, 6)[None]  # black to white
SHADES = [0, 51, 102, 153, 204, 255]


def shades(file: bytes, value_range=None) -> list[int]:
    image = decode({"bytes": file, "path": "x.tif"}, "train", 7, value_range)
    assert image.mode == "RGB" and image.size == (6, 1)
    pixels = np.asarray(image)[0]
    assert (pixels == pixels[:, :1]).all()
    return pixels[:, 0].tolist()


def saved(pixels: np.ndarray, kind: str = "tiff", **tags: tuple[int, float]) -> bytes:
    """Written by Pillow; tags as name = (type, value)."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, (kind_of_tag, value) in tags.items():
        number = {"most": 281, "s_least": 340, "s_most": 341}[name]
        directory.tagtype[number], directory[number] = kind_of_tag, value
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"tiffinfo": directory} if tags else {}))
    return file.getvalue()


def tiff(samples: np.ndarray, bits: int, *, photometric: int = 1, sample_format: int = 1, width: int = 6) -> bytes:
    """A TIFF of one row, written here, in the byte order of the samples."""
    data, order = samples.tobytes(), ">" if samples.dtype.byteorder == ">" else "<"
    tags = [(256, 4, width), (257, 4, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 0)]
    tags += [(277, 3, 1), (278, 4, 1), (279, 4, len(data)), (339, 3, sample_format)]
    place = 8 + 2 + 12 * len(tags) + 4
    file = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, kind, value in tags:
        number = struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value or place)
        file += struct.pack(f"{order}HHI", tag, kind, 1) + number
    return file + bytes(4) + data


def color_png(top: int) -> bytes:
    """16 bits a channel in color, gray from 0 to `top`."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = np.repeat((RAMP * top).round().astype(">u2")[0, :, None], 3, 1).tobytes()
    head = struct.pack(">IIBBBBB", 6, 1, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    )


def integers(top: int, kind: str) -> np.ndarray:
    return (RAMP * top).round().astype(kind)


PACKED = np.frombuffer(int("".join(f"{v:012b}" for v in integers(4095, "i4")[0]), 2).to_bytes(9, "big"), np.uint8)


@pytest.mark.parametrize(
    "file",
    [
        saved(RAMP.astype(np.float32)),
        tiff(RAMP.astype(">f4"), 32, sample_format=3),
        saved(RAMP.astype(np.float32) * 255, s_most=(11, 255.0)),
        saved(RAMP.astype(np.float32) * 2 - 1, s_least=(11, -1.0), s_most=(11, 1.0)),
        saved(integers(65535, "u2")),
        saved(integers(65535, "u2"), "png"),
        tiff(integers(65535, ">u2"), 16),
        tiff(65535 - integers(65535, "<u2"), 16, photometric=0),  # white is zero
        saved(integers(4095, "u2"), most=(3, 4095)),
        tiff(PACKED, 12),
        saved(integers(255, "i4"), most=(4, 255)),
        b"P5 6 1 4095\n" + integers(4095, ">u2").tobytes(),
        b"P5 6 1 65535\n" + integers(65535, ">u2").tobytes(),
        color_png(65535),
    ],
)
def test_values_are_scaled_by_what_the_file_says(file):
    assert shades(file) == SHADES


@pytest.mark.parametrize(
    ("file", "given", "message"),
    [
        (saved(integers(255, "i4")), (0, 255), r"it holds I numbers of 32 bits .* value_range"),
        (tiff(integers(255, "<i2"), 16, sample_format=2), (0, 255), r"does not say which are black and white"),
        (saved(RAMP.astype(np.float32) * 255), (0, 255), r"values are from 0 to 255, not from 0 to 1; .* value_range"),
        (
            saved(integers(4095, "u2")),
            (0, 4095),
            r"brightest value is 4095 of 65535.* value_range, such as \[0, 4095\]",
        ),
        (saved(integers(1023, "u2"), "png"), (0, 1023), r"such as \[0, 1023\], or \[0, 65535\] if it is that dark"),
        (tiff(integers(4095, ">u2"), 16), (0, 4095), r"brightest value is 4095"),
    ],
)
def test_a_file_that_does_not_say_its_range_is_refused_unless_the_user_does(file, given, message):
    with pytest.raises(BadImageError, match=rf"^Row 7 of split 'train' \(x\.tif\): .*{message}"):
        shades(file)
    assert shades(file, given) == SHADES
    assert shades(file, given[::-1]) == SHADES[::-1]


def test_dark_images_stay_dark_when_the_user_says_so():
    assert max(shades(saved(integers(4095, "u2")), (0, 65535))) == 16
    assert shades(saved(integers(0, "u2"))) == [0] * 6  # black is black in any range


def test_color_of_sixteen_bits_that_would_be_black_is_refused():
    with pytest.raises(BadImageError, match="color image of 16 bits per channel that does not use them all"):
        shades(color_png(4095))
    assert max(shades(color_png(4095), (0, 65535))) == 15
    with pytest.raises(BadImageError, match="convert it to 8 bits"):
        shades(color_png(65535), (0, 4095))


def test_numbers_that_are_none_are_refused():
    with pytest.raises(BadImageError, match="not finite"):
        shades(saved((RAMP * np.nan).astype(np.float32)))


WIDE = np.repeat(np.linspace(0, 1, 96, dtype=np.float32)[None], 80, 0)  # (H, W), too large to be kept decoded


@pytest.mark.parametrize(
    ("pixels", "value_range"),
    [
        (WIDE, None),
        ((WIDE * 255).round().astype(np.int32), (0, 255)),
        ((WIDE * 4095).round().astype(np.uint16), (0, 4095)),
        ((WIDE * 65535).round().astype(np.uint16), None),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_the_range_holds_for_large_images_and_for_crops_of_them(tmp_path, pixels, value_range, streaming):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.tif").write_bytes(saved(pixels))
    settings = DataSettings(str(tmp_path), value_range=value_range, streaming=streaming)
    train, _ = load_data(settings, 0)
    given = (0, next(iter(train.read(0))).image) if streaming else (0,)
    expected = np.repeat((WIDE * 255).round().astype(np.uint8)[..., None], 3, 2)
    assert np.abs(np.asarray(train.image(*given)).astype(int) - expected).max() <= 1
    crop = JpegCrop(RandomResizedCropAndInterpolation((80, 96), scale=(1, 1), ratio=(1.2, 1.2)))
    assert np.abs(train.cropped(*given, crop=crop).astype(int) - expected).max() <= 1
    if value_range:
        settings = DataSettings(str(tmp_path), streaming=streaming)
        with pytest.raises((UserError, BadImageError), match=r"1\.tif.* value_range"):
            train, _ = load_data(settings, 0)
            train.image(*given)


def test_the_setting_reaches_every_image_and_bad_ones_can_be_left_out(tmp_path):
    for split in ("train", "test"):
        for name, top in (("cat", 4095), ("dog", 65535)):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.tif").write_bytes(saved(integers(top, "u2")))
    with pytest.raises(UserError, match=r"cat/1\.tif\): its brightest value .* data\.on_bad_image=skip"):
        load_splits(DataSettings(str(tmp_path)), 0)
    train, _ = load_splits(DataSettings(str(tmp_path), on_bad_image="skip"), 0)
    assert train.pixels[:, 0, :, 0].tolist() == [SHADES] and train.skipped == 1
    train, _ = load_splits(DataSettings(str(tmp_path), value_range=(0, 65535)), 0)
    assert train.pixels[0, 0, :, 0].max() == 16 and train.pixels[1, 0, :, 0].tolist() == SHADES
    with pytest.raises(UserError, match=r"data\.value_range is \(1, 1\)"):
        load_splits(DataSettings(str(tmp_path), value_range=(1, 1)), 0)
