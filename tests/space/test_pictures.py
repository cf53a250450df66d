"""What visitors of the demo upload: pictures of every kind come out as they are seen; the rest gets one line."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from demo.pictures import open_picture
from timm_wsms.errors import UserError

COLORS = np.array([[[200, 30, 60], [10, 120, 250]], [[90, 90, 90], [255, 255, 0]]], np.uint8)  # 2×2, all different


def save(folder, image, name="picture.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


def test_opens_what_it_is_given(tmp_path):
    image = Image.fromarray(COLORS)
    assert np.array_equal(open_picture(save(tmp_path, image)), COLORS)
    assert np.array_equal(open_picture(save(tmp_path, image, "a.bmp")), COLORS)
    assert np.array_equal(open_picture(save(tmp_path, image, "a.webp", lossless=True)), COLORS)
    assert np.array_equal(open_picture(save(tmp_path, image.quantize(4))), COLORS)  # palette


def test_gray(tmp_path):
    gray = COLORS[..., 0]
    expected = np.repeat(gray[..., None], 3, -1)
    assert np.array_equal(open_picture(save(tmp_path, Image.fromarray(gray))), expected)
    deep = Image.fromarray(gray.astype(np.uint16) * 257)  # 16 bits
    assert np.array_equal(open_picture(save(tmp_path, deep)), expected)


def test_transparent_parts_are_white(tmp_path):
    alpha = np.array([[255, 0], [128, 255]], np.uint8)[..., None]
    opened = np.asarray(open_picture(save(tmp_path, Image.fromarray(np.concatenate([COLORS, alpha], -1))))).astype(int)
    expected = 255 + (COLORS.astype(float) - 255) * alpha / 255
    assert np.abs(opened - expected).max() <= 1


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # cyan
    red, green, blue = open_picture(save(tmp_path, image, "a.jpg", quality=100)).getpixel((8, 8))
    assert red < 10 and green > 245 and blue > 245


def test_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn right by a quarter
    opened = open_picture(save(tmp_path, Image.fromarray(COLORS), exif=exif))
    assert np.array_equal(opened, np.rot90(COLORS, -1))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    opened = open_picture(save(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:]))
    assert opened.size == (4, 4) and opened.getpixel((0, 0)) == (255, 0, 0)


def png_header(width, height):
    """A PNG file that says how large it is and ends where its pixels should begin."""
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data))
    return head + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dear diary", "not a picture"),
        (b"", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        # without a pixel in the file: the size is looked at before anything is decoded
        (png_header(10_000, 5_000), "50 megapixels, 25 at most"),
        (png_header(10_000, 10_000), "100 megapixels"),  # Pillow would warn
        (png_header(20_000, 20_000), "too large"),  # Pillow would raise
        (png_header(20, 20), "damaged"),
    ],
    ids=["text", "empty", "svg", "eps", "50 MP", "100 MP", "400 MP", "no pixels"],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_picture_or_too_large(tmp_path, content, message):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_picture(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp"])
def test_damaged(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path, Image.fromarray(noise), name)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"damaged|not a picture"):
        open_picture(path)
