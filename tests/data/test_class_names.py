"""Names of classes that look alike, and numbers that do not count from 0: one class, or said."""

import itertools
import json
import unicodedata

import pytest
from PIL import Image

from timm_wsms import UserError
from timm_wsms.data import DataSettings, load_splits, summary
from timm_wsms.data.class_names import in_order

TYPED, STORED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def put(folder, name, number=0):
    path = folder / name / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, number, 0)).save(path)


def remarks(settings):
    train, test = load_splits(settings, 0)
    return summary.describe({"train": train, "test": test}, settings)["remarks"]


def table(path, rows):
    import pyarrow as pa
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.parent / "one.png"
    Image.new("RGB", (8, 8), "white").save(file)
    image = file.read_bytes()
    file.unlink()
    pa.parquet.write_table(pa.table({"image": [image] * len(rows), "label": rows}), path)


def test_accents_in_either_form_are_one_class(tmp_path):
    assert TYPED != STORED
    for split, name in (("train", TYPED), ("test", STORED)):
        put(tmp_path / split, name)
        put(tmp_path / split, "tea")
    train, test = load_splits(DataSettings(str(tmp_path)), 0)
    assert [*train.class_names] == [*test.class_names] == [TYPED, "tea"]
    assert train.labels.tolist() == test.labels.tolist() == [0, 1]


def test_accents_in_words_of_a_table(tmp_path):
    for split, name in (("train", TYPED), ("test", STORED)):
        table(tmp_path / "data" / f"{split}.parquet", [name, "tea"] * 8)
    train, test = load_splits(DataSettings(str(tmp_path / "data")), 0)
    assert [*train.class_names] == [TYPED, "tea"] and train.labels.tolist() == test.labels.tolist()


def test_accents_in_metadata(tmp_path):
    for split, name in (("train", TYPED), ("test", STORED)):
        for number in range(2):
            put(tmp_path / split, "", number)
        rows = "".join(f"{number}.png,{word}\n" for number, word in enumerate((name, "tea")))
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n" + rows, encoding="utf-8")
    train, test = load_splits(DataSettings(str(tmp_path)), 0)
    assert [*train.class_names] == [TYPED, "tea"] and train.labels.tolist() == test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("second", ["cat ", "Cat"])
def test_names_that_differ_in_spaces_or_case_are_told(second, tmp_path):
    for split in ("train", "test"):
        for name in ("cat", second, "dog"):
            put(tmp_path / split, name)
    (said,) = remarks(DataSettings(str(tmp_path)))
    first, other = sorted(("cat", second))
    assert said == f"WARNING: classes {first!r}, {other!r} differ in spaces or case only; are they one?"


def test_numbers_from_1_are_told(tmp_path):
    for split in ("train", "test"):
        table(tmp_path / "data" / f"{split}.parquet", [1, 2, 3, 3])
    (said,) = remarks(DataSettings(str(tmp_path / "data")))
    assert said.startswith("WARNING: labels count from 0, and no image of split 'train' is of 1 class (0)")
    settings = DataSettings(str(tmp_path / "data"))
    train, test = load_splits(settings, 0)
    assert json.loads(json.dumps(summary.describe({"train": train, "test": test}, settings)))["classes"] == [*"0123"]


def test_two_rows_of_metadata_for_one_file(tmp_path):
    put(tmp_path, "", 0)
    put(tmp_path, "", 1)
    metadata = tmp_path / "metadata.csv"
    metadata.write_text("file_name,label\n0.png,cat\n1.png,dog\n0.png,dog\n")
    with pytest.raises(UserError, match=r"metadata.csv: 0.png has two rows that differ; remove one of them"):
        load_splits(DataSettings(str(tmp_path), holdout=0.5), 0)


@pytest.mark.parametrize("spelled", ["01", "1.0"])
def test_one_number_in_two_spellings_is_told(spelled, tmp_path):
    for split in ("train", "test"):
        table(tmp_path / "data" / f"{split}.parquet", ["1", spelled, "2"])
    (said,) = remarks(DataSettings(str(tmp_path / "data")))
    assert said == f"WARNING: classes {', '.join(map(repr, sorted(('1', spelled))))} are the same number; are they one?"


def test_the_order_of_equal_numbers_follows_from_the_names(tmp_path):
    """Not from the order in which a set lists them: it is another one in each process."""
    expected = ["001", "01", "1", "02", "2"]
    for names in itertools.permutations(expected):
        assert in_order(names) == expected
    assert in_order(["10", "9", "a"]) == in_order(["a", "9", "10"]) == ["10", "9", "a"]
    for split in ("train", "test"):
        table(tmp_path / "table" / f"{split}.parquet", expected[::-1])
        for number in range(len(expected)):
            put(tmp_path / "folder" / split, "", number)
        rows = "".join(f"{number}.png,{name}\n" for number, name in enumerate(expected[::-1]))
        (tmp_path / "folder" / split / "metadata.csv").write_text("file_name,label\n" + rows)
    for source in ("table", "folder"):
        train, _ = load_splits(DataSettings(str(tmp_path / source)), 0)
        assert [*train.class_names] == expected and sorted(train.labels.tolist()) == [0, 1, 2, 3, 4]
