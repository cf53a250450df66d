"""What is said about the data before training, and kept beside the result."""

import json

import numpy as np
import pytest
from PIL import Image

from timm_wsms.data import DataSettings, load_data, load_splits, summary


@pytest.fixture
def folder(tmp_path):
    """Photographs of two sizes and modes, with every kind of thing that is to be said."""
    rng = np.random.default_rng(0)
    for split, names in (("train", {"cat": 3, "dog": 2, "ant": 1}), ("val", {"cat": 2, "Dog": 1})):
        for name, count in names.items():
            for number in range(count):
                file = tmp_path / "pets" / split / name / "inner" / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (70 + 10 * number, 100, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert("L" if name == "dog" else "RGB").save(file)
    for number in range(5):
        (tmp_path / "pets" / "train" / "cat" / f"{number}.heic").write_bytes(b"x")
    return tmp_path / "pets"


def test_all_of_it(folder):
    settings = DataSettings(str(folder))
    train, test = load_splits(settings, 0)
    found = summary.describe({"train": train, "test": test}, settings)
    assert json.loads(json.dumps(found)) == found and str(folder.parent) not in json.dumps(found)
    assert (found["source"], found["classes"]) == ("pets", ["Dog", "ant", "cat", "dog"])
    assert found["only_in"] == {"train": ["ant", "dog"], "test": ["Dog"]}
    first = found["splits"]["train"]
    assert first["images_per_class"] == {"ant": 1, "cat": 3, "dog": 2} and first["images"] == 6
    assert first["modes"] == {"RGB": 4, "L": 2} and (first["width"], first["height"]) == ([100, 100], [70, 90])
    (why, files), *others = first["passed_over"].items()
    assert why == "files that Pillow does not read (.heic)" and files["files"] == 5 and len(files["first"]) == 3
    assert not others
    printed = summary.lines(found)
    assert printed[:4] == [
        "data pets: 4 classes (Dog, ant, cat, dog)",
        "  train: 6 images of split 'train', 1 to 3 per class; RGB, L, 100 × 70–90 pixels (width × height)",
        "    passed over: 5 files that Pillow does not read (.heic): train/cat/0.heic, train/cat/1.heic,"
        " train/cat/2.heic and 2 more",
        "  test: 3 images of split 'val', 1 to 2 per class; RGB, 100 × 70–80 pixels (width × height)",
    ]
    assert "  WARNING: only in train: 2 classes (ant, dog)" in printed
    assert "  WARNING: only in test: 1 class (Dog)" in printed
    assert any("first level of folders is the class" in line for line in printed)
    assert "  there is no split 'test'; 'val' is taken" in printed


def test_many_classes_are_counted_and_the_first_ten_named(tmp_path):
    names = [f"class {number:02}" for number in range(12)]
    for split in ("train", "test"):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (6, 4)).save(tmp_path / split / name / "1.png")
    settings = DataSettings(str(tmp_path))
    train, test = load_splits(settings, 0)
    first = summary.lines(summary.describe({"train": train, "test": test}, settings))[0]
    assert first.endswith(f"12 classes ({', '.join(names[:10])}, …)")


def test_a_large_split_is_looked_at_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "SAMPLE", 3)
    for number in range(9):
        for split in ("train", "test"):
            file = tmp_path / split / str(number % 2) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (100 + number, 70)).save(file)
    settings = DataSettings(str(tmp_path))
    train, test = load_splits(settings, 0)
    found = summary.describe({"train": train, "test": test}, settings)
    assert found["splits"]["train"]["width"] == [100, 108]  # the first, the middle and the last by class
    assert "(3 looked at)" in summary.lines(found)[1]


def test_digits_and_streams_are_told_as_far_as_they_are_known(folder):
    digits = summary.describe(dict(zip(("train", "test"), load_splits(DataSettings(), 0), strict=True)), DataSettings())
    assert digits["source"] == "digits" and digits["splits"]["test"]["width"] == [32, 32] and not digits["only_in"]
    settings = DataSettings(str(folder), streaming=True)
    streams = summary.describe(dict(zip(("train", "test"), load_data(settings, 0), strict=True)), settings)
    assert streams["splits"]["train"]["images"] == 6 and "images_per_class" not in streams["splits"]["train"]
    assert streams["splits"]["train"]["passed_over"] and streams["remarks"]


def test_a_card_tells_the_same(folder, tmp_path):
    assert summary.card_lines(tmp_path / "data.json") == []
    settings = DataSettings(str(folder))
    train, test = load_splits(settings, 0)
    (tmp_path / "data.json").write_text(json.dumps(summary.describe({"train": train, "test": test}, settings)))
    told = summary.card_lines(tmp_path / "data.json")
    assert told[0] == "pets: 4 classes (Dog, ant, cat, dog)" and "WARNING: only in test: 1 class (Dog)" in told


def test_black_images_are_told(tmp_path):
    """Floats from 0 to 1 that were saved as bytes, with a value of 1 here and there."""
    for split, most in (("train", 1), ("test", 2)):
        for number in range(20):
            file = tmp_path / split / str(number % 2) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((70, 80, 3), np.uint8)
            pixels[number] = most
            Image.fromarray(pixels).save(file)
    settings = DataSettings(str(tmp_path))
    train, test = load_splits(settings, 0)
    (said,) = summary.describe({"train": train, "test": test}, settings)["remarks"]
    assert said == (
        "WARNING: 8 images of split 'train' were decoded, and are black: the brightest value is 1 of 255. Were values"
        " from 0 to 1 saved as bytes?"
    )
