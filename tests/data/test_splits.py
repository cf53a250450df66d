"""Names of splits, parts of them, what is kept back, and samples."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from timm_wsms.data import DataSettings, load_split, load_splits, summary
from timm_wsms.data.sampling import even, first, holdout, part
from timm_wsms.data.split_names import find_split, parse_split
from timm_wsms.errors import UserError

LABELS = np.array([0] * 10 + [1] * 5 + [2] * 20)
MIXED = np.random.default_rng(0).permutation(LABELS)


@pytest.mark.parametrize(
    ("wanted", "there", "found"),
    [
        *[
            ("test", ["train", name], name)
            for name in ("test", "Test", "TESTING", "validation", "valid", "val", "dev", "eval")
        ],
        ("test", ["train", "validation", "testing"], "testing"),
        ("validation", ["train", "val"], "val"),
        ("validation", ["train", "test"], None),  # a user who asks for it does not mean the test split
        ("train", ["Training", "test"], "Training"),
        ("test", ["train"], None),
        ("fold1", ["train", "test"], None),
    ],
)
def test_splits_are_found_under_their_usual_names(wanted, there, found):
    assert find_split(wanted, there) == found


def test_a_part_of_rows_in_any_order_is_a_range_of_them():
    for text, expected in {
        "train[:80%]": range(28),
        "train[80%:]": range(28, 35),
        "train[20%:40%]": range(7, 14),
        "train[10:20]": range(10, 20),
        "train[-5:]": range(30, 35),
        "train[:-10%]": range(round(31.5)),
        "train[30:10]": [],
        "train[:900]": range(35),
    }.items():
        assert part(MIXED, parse_split(text)).tolist() == list(expected), text
    assert parse_split("train") == ("train", None, None, "train") and parse_split("a[b]").name == "a[b]"
    with pytest.raises(UserError, match=r"'train\[:x%\]' is not a part of a split"):
        parse_split("train[:x%]")


def test_parts_of_rows_that_come_class_by_class_have_that_part_of_each_class():
    low, high = (part(LABELS, parse_split(text)) for text in ("train[:80%]", "train[80%:]"))
    assert np.bincount(LABELS[low]).tolist() == [8, 4, 16] and np.bincount(LABELS[high]).tolist() == [2, 1, 4]
    assert sorted([*low, *high]) == list(range(35))


@pytest.mark.parametrize("labels", [LABELS, MIXED])
def test_what_is_held_out_is_stratified_and_follows_from_the_seed(labels):
    rest, kept = holdout(labels, 0.2, 3)
    assert sorted([*rest, *kept]) == list(range(35)) and np.bincount(labels[kept]).tolist() == [2, 1, 4]
    assert np.array_equal(kept, holdout(labels, 0.2, 3)[1]) and not np.array_equal(kept, holdout(labels, 0.2, 4)[1])
    few = np.array([0, 0, 1])
    assert few[holdout(few, 0.01, 0)[1]].tolist() == [0]  # one at least, where one is left to train on
    assert few[holdout(few, 0.99, 0)[0]].tolist() == [0]


def test_samples():
    assert np.bincount(LABELS[even(LABELS, 7)]).tolist() == [3, 2, 2] and even(LABELS, 7).tolist() == [
        0,
        1,
        2,
        10,
        11,
        15,
        16,
    ]
    assert np.bincount(LABELS[even(LABELS, 25)]).tolist() == [10, 5, 10]
    assert len(even(LABELS, 99)) == 35
    assert first(MIXED, 6).tolist() == list(range(6))
    assert first(LABELS, 6).tolist() == [0, 1, 10, 11, 15, 16]  # the first six would be one class


@pytest.fixture
def folder(tmp_path) -> str:
    for split, count in (("train", 10), ("val", 3)):
        for name in ("cat", "dog"):
            for number in range(count):
                file = tmp_path / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (6, 4), (number + 100 * (name == "dog"),) * 3).save(file)
    return str(tmp_path)


def shades(split) -> list[int]:
    return split.pixels[:, 0, 0, 0].tolist()


def said(train, test, settings) -> str:
    return "\n".join(summary.lines(summary.describe({"train": train, "test": test}, settings)))


def test_validation_is_taken_and_said_to_be(folder):
    settings = DataSettings(folder)
    train, test = load_splits(settings, 0)
    assert test.name == "val" and shades(test) == [0, 1, 2, 100, 101, 102]
    assert "there is no split 'test'; 'val' is taken" in said(train, test, settings)


def test_a_part_is_held_out_of_the_training_images(folder):
    settings = DataSettings(folder, holdout=0.2)
    train, test = load_splits(settings, 5)
    assert (len(train), len(test)) == (16, 4) and not set(shades(train)) & set(shades(test))
    assert np.bincount(test.labels).tolist() == [2, 2]
    again = load_split(settings, seed=5)  # what `evaluate --holdout 0.2 --seed 5` sees
    assert shades(again) == shades(test) and again.name == test.name == "train, 0.2 held out"
    assert shades(load_split(settings, seed=6)) != shades(test)
    assert "WARNING" not in said(train, test, settings)
    for wrong in (0.0, 1.0, -0.2, 20):
        with pytest.raises(UserError, match=r"data\.holdout is .* between 0 and 1"):
            load_splits(DataSettings(folder, holdout=wrong), 0)


def test_parts_of_a_split(folder):
    settings = DataSettings(folder, train_split="train[:80%]", test_split="train[80%:]")
    train, test = load_splits(settings, 0)
    assert shades(train) == [*range(8), *range(100, 108)] and shades(test) == [8, 9, 108, 109]
    assert (train.name, test.name) == ("train[:80%]", "train[80%:]") and "WARNING" not in said(train, test, settings)
    assert test.source_rows.tolist() == [8, 9, 18, 19]
    with pytest.raises(UserError, match=r"data\.test_split 'train\[0:0\]' holds none of 20 images"):
        load_splits(DataSettings(folder, test_split="train[0:0]"), 0)


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        ({"test_split": "train"}, "20 of 20"),
        ({"train_split": "train[:80%]", "test_split": "train[60%:]"}, "4 of 8"),
        ({"test_split": "train", "train_limit": 6, "test_limit": 8}, "6 of 8"),
    ],
)
def test_evaluating_on_images_that_are_trained_on_is_said(folder, chosen, count):
    settings = DataSettings(folder, **chosen)
    assert f"WARNING: {count} images that are evaluated on are trained on too" in said(
        *load_splits(settings, 0), settings
    )


def test_a_limit_of_sorted_data_takes_all_classes(folder):
    train, test = load_splits(DataSettings(folder, train_limit=4, test_limit=2), 0)
    assert shades(train) == [0, 1, 100, 101] and shades(test) == [0, 100]
    assert shades(load_split(DataSettings(folder), limit=3)) == [0, 1, 100]
    with pytest.raises(UserError, match="limit is 0; give at least 1"):
        load_split(DataSettings(folder), limit=0)


def test_evaluation_does_not_read_what_it_does_not_evaluate(folder):
    for file in Path(folder).glob("train/*/*.png"):
        file.write_bytes(b"no image")
    assert len(load_split(DataSettings(folder))) == 6
    with pytest.raises(UserError, match="cannot be decoded"):
        load_splits(DataSettings(folder), 0)


def test_a_bad_image_of_a_part_is_named_by_its_row_in_the_split(folder):
    (Path(folder) / "train" / "dog" / "8.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"Row 18 of split 'train\[80%:\]' .*dog/8\.png"):
        load_split(DataSettings(folder, test_split="train[80%:]"))
    train, _ = load_splits(DataSettings(folder, train_split="train[80%:]", on_bad_image="skip"), 0)
    assert train.source_rows.tolist() == [8, 9, 19] and train.skipped == 1


def test_the_embedded_digits_have_parts_and_can_be_held_out():
    train, test = load_splits(DataSettings(train_split="train[:100]", test_split="test[:49]"), 0)
    assert (len(train), len(test)) == (100, 49) and len(test.object_sizes) == 49
    train, test = load_splits(DataSettings(holdout=0.1), 0)
    assert len(train) + len(test) == 1437 and abs(len(test) - 144) <= 5


def test_a_split_of_the_same_meaning_that_is_not_used_is_told(folder):
    settings = DataSettings(folder)
    assert "is not used" not in said(*load_splits(settings, 0), settings)
    shutil.copytree(Path(folder) / "train" / "cat", Path(folder) / "training" / "cat")
    assert "WARNING: split 'training' is not used, 'train' is; are both meant?" in said(
        *load_splits(settings, 0), settings
    )
    shutil.copytree(Path(folder) / "train" / "cat", Path(folder) / "validation" / "cat")  # beside `val`
    found = said(load_split(settings), load_split(settings), settings)
    assert "WARNING: split 'val' is not used, 'validation' is" in found and "training" not in found


def test_a_column_that_names_splits_is_told_since_nothing_reads_it(tmp_path):
    rows = [("cat", "train"), ("dog", "train"), ("cat", "test"), ("dog", "test")]
    for number in range(4):
        Image.new("RGB", (6, 4), (number + 50,) * 3).save(tmp_path / f"{number}.png")
    lines = [f"{number}.png,{name},{split}" for number, (name, split) in enumerate(rows)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label,split", *lines]))
    settings = DataSettings(str(tmp_path), holdout=0.5)
    expected = (
        "WARNING: column 'split' (test, train) is not used, and these splits are one; give each a folder or a file"
    )
    assert expected in said(*load_splits(settings, 0), settings)
    files = [(tmp_path / f"{number}.png").read_bytes() for number in range(4)]
    table = pa.table({"image": files, "label": [0, 1, 0, 1], "split": [split for _, split in rows]})
    (tmp_path / "table").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "table" / "train.parquet")
    settings = DataSettings(str(tmp_path / "table"), holdout=0.5)
    assert expected in said(*load_splits(settings, 0), settings)
