"""Are the demo's photographs in the data that its networks were trained and tested on?

    python -m benchmarks.demo_photographs --flowers ../shared/data/flowers

Each photograph of hub/space/examples/ is compared with all 4,311 of the data, which were squeezed to a square when they
were published: as a whole and by its squares at both ends and in the middle, as thumbnails of 16×16 pixels, by their
correlation. One and the same photograph is at 0.95 and above. Writes benchmarks/results/demo_photographs.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common.environment import ROOT, record
from timm_wsms.files import atomic_write_text

EXAMPLES = ROOT / "hub" / "space" / "examples"
SIDE = 16


def thumbnail(image: Image.Image) -> np.ndarray:
    """Pixels of an image squeezed to a small square, of mean 0 and length 1."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64).ravel()
    pixels -= pixels.mean()
    return pixels / np.linalg.norm(pixels)


def ways_to_cut(image: Image.Image) -> list[Image.Image]:
    """The whole image, and its squares at both ends and in the middle."""
    width, height = image.size
    side = min(width, height)
    corners = [(round(part * (width - side)), round(part * (height - side))) for part in (0, 0.5, 1)]
    return [image, *(image.crop((left, top, left + side, top + side)) for left, top in corners)]


def most_alike(photograph: Image.Image, known: np.ndarray) -> float:
    """The highest correlation with any of the known thumbnails, (n, pixels)."""
    return max(float((known @ thumbnail(cut)).max()) for cut in ways_to_cut(photograph))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flowers", type=Path, required=True)
    files = sorted(parser.parse_args().flowers.glob("t*/*/*.jpg"))
    known = np.stack([thumbnail(Image.open(file)) for file in files])
    found = {
        path.relative_to(EXAMPLES).as_posix(): round(most_alike(Image.open(path), known), 3)
        for path in sorted(EXAMPLES.glob("*/*"))
    }
    report = {"what": __doc__.splitlines()[0], **record(), "images": len(files), "highest_correlation": found}
    text = json.dumps(report, indent=1)
    atomic_write_text(ROOT / "benchmarks" / "results" / "demo_photographs.json", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
