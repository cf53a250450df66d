"""JPEG files that are to a decoder what photographs are: for benchmarks/speed/input_pipeline.py.

Each is an enlarged photograph of CIFAR-10, with noise whose amplitude falls as 1/frequency, as that of natural images
does, and some shapes with hard edges. 4:2:0, qualities 88 to 95.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import fft

# Width, height and share, so that the mean is about 500 × 400 as in ImageNet, whose most frequent sizes these are.
SIZES = {
    (500, 375): 0.42, (375, 500): 0.10, (500, 333): 0.18, (333, 500): 0.03, (500, 500): 0.05, (640, 480): 0.09,
    (400, 300): 0.06, (800, 600): 0.05, (250, 250): 0.02,
}  # fmt: skip
QUALITIES = (88, 92, 95)
FIELDS, SIDE = 8, 2048  # noise is cut from FIELDS squares of SIDE × SIDE pixels
SHAPES = 5


def write_images(
    folder: Path,
    count: int,
    photographs: np.ndarray,
    *,
    amplitude: float,
    size: tuple[int, int] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Writes JPEGs into two folders of classes.

    Args:
        folder: where to; `<folder>/<class>/<number>.jpg`.
        count: how many.
        photographs: uint8 (n, H, W, 3), to be enlarged.
        amplitude: standard deviation of the noise in brightness, of 255; the size of the files follows from it.
        size: width and height of all; by default drawn from `SIZES`.
        seed: of all that is drawn.

    Returns:
        Their number and the means of their width, height and size in KB (1,000 bytes).
    """
    rng = np.random.default_rng(seed)
    fields = np.stack([amplitude * noise(SIDE, rng) for _ in range(FIELDS)])  # (FIELDS, SIDE, SIDE)
    sizes = [size] * count if size else rng.choice(list(SIZES), count, p=list(SIZES.values())).tolist()
    total = 0
    for number, (width, height) in enumerate(sizes):
        path = folder / f"class{number % 2}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph = photographs[rng.integers(len(photographs))]
        image = make_image(photograph, width, height, fields, rng)
        image.save(path, quality=int(rng.choice(QUALITIES)))
        total += path.stat().st_size
    width, height = np.mean(sizes, axis=0)
    return {"count": count, "width": float(width), "height": float(height), "kb": round(total / count / 1000, 1)}


def make_image(
    photograph: np.ndarray, width: int, height: int, fields: np.ndarray, rng: np.random.Generator
) -> Image.Image:
    """Enlarges a photograph, and adds noise and shapes."""
    enlarged = Image.fromarray(photograph).resize((width, height), Image.Resampling.BICUBIC)
    brightness, *colors = (window(fields, width, height, rng) for _ in range(4))  # (H, W) each
    channels = [brightness + 0.3 * color for color in colors]
    pixels = np.asarray(enlarged) + np.stack(channels, axis=-1)  # (H, W, 3)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(SHAPES):
        x, y = rng.integers(0, width), rng.integers(0, height)
        a, b = rng.integers(8, width // 5, size=2)
        outline, line = tuple(rng.integers(0, 256, 3).tolist()), int(rng.integers(1, 8))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x - a, y - b, x + a, y + b), outline=outline, width=line)
    return image


def noise(side: int, rng: np.random.Generator) -> np.ndarray:
    """Noise whose amplitude falls as 1/frequency: float32 (side, side), mean 0, standard deviation 1."""
    spectrum = fft.rfft2(rng.standard_normal((side, side), dtype=np.float32))
    frequency = np.hypot(fft.fftfreq(side)[:, None], fft.rfftfreq(side)[None]).astype(np.float32)
    frequency[0, 0] = np.inf  # no mean
    field = fft.irfft2(spectrum / frequency, s=(side, side))
    return field / field.std()


def window(fields: np.ndarray, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A part of one of the fields: float32 (height, width)."""
    number, top, left = rng.integers(0, [len(fields), SIDE - height + 1, SIDE - width + 1])
    return fields[number, top : top + height, left : left + width]
