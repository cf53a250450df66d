"""The comparison of the demo's photographs with the data: it finds a photograph again, and the report is of all."""

import json

import numpy as np
from PIL import Image

from benchmarks import demo_photographs
from tests.helpers.paths import ROOT


def test_a_photograph_is_found_again_squeezed_or_cut():
    files = sorted(demo_photographs.EXAMPLES.glob("*/*"))
    images = [Image.open(file).convert("RGB") for file in files]
    known = np.stack([demo_photographs.thumbnail(image.resize((128, 128))) for image in images])
    middles = np.stack([demo_photographs.thumbnail(demo_photographs.ways_to_cut(image)[2]) for image in images])
    for place, image in enumerate(images):
        others = np.delete(known, place, 0)
        assert demo_photographs.most_alike(image, known) > 0.98 > 0.9 > demo_photographs.most_alike(image, others)
        assert demo_photographs.most_alike(image, middles) > 0.98


def test_none_of_the_photographs_is_in_the_data():
    report = json.loads((ROOT / "benchmarks" / "results" / "demo_photographs.json").read_text())
    files = sorted(
        path.relative_to(demo_photographs.EXAMPLES).as_posix() for path in demo_photographs.EXAMPLES.glob("*/*")
    )
    assert sorted(report["highest_correlation"]) == files and report["images"] == 4311
    assert max(report["highest_correlation"].values()) < 0.9
