"""Every kind of image a folder may hold: read right, whole and as a crop, or named in one line."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from timm.data.transforms import RandomResizedCropAndInterpolation

from tests.helpers.preprocessing import preprocessing
from timm_wsms.data import DataSettings, TimmAugmentation, load_splits, make_loader
from timm_wsms.data.decode import BadImageError, check_head, decode, decode_cropped
from timm_wsms.data.jpeg_crop import JpegCrop
from timm_wsms.errors import UserError

CROP = JpegCrop(RandomResizedCropAndInterpolation((20, 24), interpolation="bicubic"))
CONFIG = preprocessing(24, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RED, GRAY = np.array([200, 30, 60]), np.array([77, 77, 77])


def quarters(height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 (H, W, 3): four quarters, each of a color of its own, which say how an image is turned."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GRAY
    pixels[height // 2 :, : width // 2] = [10, 220, 120]
    return pixels


def saved(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def value(file: bytes) -> dict:
    return {"bytes": file, "path": None}


def turned(orientation: int) -> tuple[bytes, np.ndarray]:
    """A JPEG whose EXIF says how to turn it, and what it then shows (EXIF 2.3, Section 4.6.4, tag 274)."""
    pixels, exif = quarters(), Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, -1)[:, ::-1][::-1, ::-1],
        8: np.rot90(pixels),
    }[orientation]
    return saved(pixels, "jpeg", quality=95, subsampling=0, exif=exif), upright


def palette() -> tuple[bytes, np.ndarray]:
    return saved(Image.fromarray(quarters()).quantize(16), "png", transparency=0), quarters()


def gray() -> tuple[bytes, np.ndarray]:
    shades = quarters()[..., :1]
    return saved(shades[..., 0], "jpeg", quality=95), shades.repeat(3, axis=2)


def sixteen_bits() -> tuple[bytes, np.ndarray]:
    shades = quarters()[..., 0]
    return saved(shades.astype(np.uint16) * 257, "png"), shades[..., None].repeat(3, axis=2)


def cmyk() -> tuple[bytes, np.ndarray]:
    return saved(Image.fromarray(quarters()).convert("CMYK"), "jpeg", quality=95, subsampling=0), quarters()


def transparent() -> tuple[bytes, np.ndarray]:
    alpha = np.full((64, 96, 1), 128, np.uint8)
    return saved(np.concatenate([quarters(), alpha], axis=2), "png"), quarters()


def black_and_white() -> tuple[bytes, np.ndarray]:
    white = (quarters()[..., :1] > 100) * np.uint8(255)
    return saved(Image.fromarray(white[..., 0]).convert("1"), "png"), white.repeat(3, axis=2)


def animated(kind: str, **options) -> tuple[bytes, np.ndarray]:
    """Several frames or pages, of which the first counts."""
    first = Image.fromarray(quarters())
    return saved(first, kind, save_all=True, append_images=[Image.new("RGB", (96, 64))], **options), quarters()


def with_a_color_profile() -> tuple[bytes, np.ndarray]:
    """Of another color space: the values are taken as they are."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return saved(quarters(), "png", icc_profile=profile), quarters()


KINDS = {
    **{f"exif {orientation}": (lambda orientation=orientation: turned(orientation)) for orientation in range(1, 9)},
    **{
        kind.__name__: kind
        for kind in (palette, gray, sixteen_bits, cmyk, transparent, black_and_white, with_a_color_profile)
    },
    **{f"animated {kind}": (lambda kind=kind: animated(kind)) for kind in ("gif", "png", "tiff")},
    "animated webp": lambda: animated("webp", lossless=True),
    "progressive": lambda: (saved(quarters(), "jpeg", quality=95, progressive=True, subsampling=0), quarters()),
    "webp": lambda: (saved(quarters(), "webp", lossless=True), quarters()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_in_rgb_and_upright(kind):
    file, expected = KINDS[kind]()
    image = decode(value(file), "train", 0)
    assert image.mode == "RGB"
    # JPEG and CMYK change a shade by a little, and blocks of 8 pixels around an edge by more.
    differ = np.abs(np.asarray(image, np.int64) - expected)
    assert image.size == expected.shape[1::-1] and differ.mean() < 1 and np.percentile(differ, 95) <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_of_every_kind_the_crop_is_timms(kind):
    file, _ = KINDS[kind]()
    for seed in range(5):
        random.seed(seed)
        expected = CROP.crop(decode(value(file), "train", 0))
        random.seed(seed)
        pixels = decode_cropped(value(file), "train", 0, CROP)
        differ = np.abs(pixels.astype(np.int64) - np.asarray(expected))
        as_jpeg = kind in ("exif 1", "gray", "progressive")
        # Off by half a pixel at the edges of quarters if decoded at half size.
        assert pixels.dtype == np.uint8 and (differ.mean() < 4 if as_jpeg else differ.max() == 0)


def damaged() -> dict[str, bytes]:
    """Files that are no images, or not whole ones."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    jpeg, png = saved(noise, "jpeg"), saved(noise, "png")
    frame = jpeg.index(b"\xff\xc0")
    return {
        "zero bytes": b"",
        "one byte": b"\xff",
        "text": b"no image",
        "truncated JPEG": jpeg[: len(jpeg) // 2],
        "JPEG without its last bytes": jpeg[:-20],
        "head of a JPEG": jpeg[: frame + 30],
        "JPEG of no size": jpeg[: frame + 5] + bytes(4) + jpeg[frame + 9 :],
        "JPEG with a broken table": jpeg.replace(b"\xff\xc4", b"\xff\xc4\xff", 1),
        "truncated PNG": png[: len(png) // 2],
        "PNG with a flipped bit": png[:200] + bytes([png[200] ^ 1]) + png[201:],
    }


def cropped(of: dict, split: str, row: int) -> np.ndarray:
    return decode_cropped(of, split, row, CROP)


@pytest.mark.parametrize("read", [decode, cropped])
@pytest.mark.parametrize("kind", damaged())
def test_a_damaged_file_is_named_in_one_line(kind, read):
    with pytest.raises(BadImageError, match=r"^Row 7 of split 'train' cannot be decoded \(.+\)\.$") as error:
        read(value(damaged()[kind]), "train", 7)
    assert len(str(error.value).splitlines()) == 1


def test_what_a_crop_and_a_whole_image_say_of_a_damaged_file_is_the_same(tmp_path):
    for kind, file in damaged().items():
        path = tmp_path / f"{kind}.jpg"
        path.write_bytes(file)
        messages = set()
        for read in (decode, cropped):
            with pytest.raises(BadImageError, match=path.name) as error:
                read({"bytes": None, "path": str(path)}, "train", 7)
            messages.add(str(error.value).split("(")[2].split(":")[0])  # the kind of error
        assert len(messages) == 1, messages


@pytest.mark.parametrize("kind", ["zero bytes", "one byte", "text"])
def test_what_is_no_image_is_seen_at_its_head(kind):
    with pytest.raises(BadImageError, match="Row 3 of split 'test'"):
        check_head(value(damaged()[kind]), "test", 3)
    check_head(value(damaged()["truncated JPEG"]), "test", 3)  # has a head


def write_folder(folder: Path, bad: dict[str, bytes]) -> str:
    """An image folder with all kinds of images, and bad ones in its training split."""
    for split in ("train", "test"):
        for number, kind in enumerate(KINDS):
            file = folder / split / f"class{number % 2}" / f"{kind}.{'jpg' if number % 3 else 'png'}"  # names may lie
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(KINDS[kind]()[0])
    for kind, file in bad.items():
        (folder / "train" / "class0" / f"{kind}.jpg").write_bytes(file)
    return str(folder)


@pytest.mark.parametrize("decoding", ["fast", "full"])
def test_a_run_leaves_out_bad_images_and_counts_them(tmp_path, monkeypatch, decoding):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    augmentation = TimmAugmentation(auto_augment="rand-m5-inc1")
    settings = DataSettings(
        write_folder(tmp_path / "d", damaged()),
        augmentation="timm",
        timm=augmentation,
        decoding=decoding,
        on_bad_image="skip",
        workers=0,
    )
    train, _ = load_splits(settings, 0)
    loader = make_loader(train, settings, CONFIG, batch_size=len(train), train=True)
    (batch,) = loader
    assert len(batch.index) == len(KINDS) and loader.skipped == len(damaged())
    assert batch.images.shape[1:] == (3, 24, 24) and batch.images.isfinite().all()
    settings.on_bad_image = "error"
    with pytest.raises(UserError, match=r"split 'train' .*\.jpg.* cannot be decoded .*data\.on_bad_image=skip"):
        list(make_loader(train, settings, CONFIG, batch_size=len(train), train=True))
    with pytest.raises(UserError, match="cannot be decoded"):  # before training, as heads are checked
        load_splits(settings, 0)
