"""Columns found by type or by name, and labels read from them."""

import datasets
import numpy as np
import pytest

from timm_wsms.data import DataSettings
from timm_wsms.data.columns import find_columns, read_labels
from timm_wsms.data.hub_source import pick_split
from timm_wsms.errors import UserError

VALUE = datasets.Value
TYPES = {
    "img": datasets.Image(),
    "fine": datasets.ClassLabel(names=["cat", "dog"]),
    "weight": VALUE("float32"),
    "number": VALUE("int64"),
    "byte": VALUE("uint8"),
    "text": VALUE("string"),
    "photo": datasets.Image(),
    "Label": VALUE("string"),
    "file": VALUE("binary"),
    "struct": {"bytes": VALUE("binary"), "path": VALUE("string")},
    "coarse": datasets.ClassLabel(names=["pet"]),
    "label": VALUE("float64"),
    "Target": VALUE("bool"),
    "labels": [VALUE("int64")],
}


def table(*columns: str, **values: list) -> datasets.Dataset:
    features = datasets.Features({name: TYPES[name] for name in (*columns, *values)})
    return datasets.Dataset.from_dict({**{name: [] for name in columns}, **values}, features=features)


@pytest.mark.parametrize(
    ("columns", "named", "found"),
    [
        (("fine", "img"), {}, ("img", "fine")),
        (("number", "img", "fine", "weight"), {}, ("img", "fine")),  # class labels go before other integers
        (("number", "img", "weight", "text"), {}, ("img", "number")),
        (("img", "weight", "text"), {}, ("img", "text")),
        (("number", "img", "Label"), {}, ("img", "Label")),  # a column with the usual name goes before others
        (("file", "fine"), {}, ("file", "fine")),
        (("struct", "fine"), {}, ("struct", "fine")),
        (("file", "img", "fine"), {}, ("img", "fine")),
        (("file", "img", "fine"), {"image_column": "file"}, ("file", "fine")),
        (("img", "number", "text"), {"label_column": "text"}, ("img", "text")),
        (("img", "byte"), {}, ("img", "byte")),
        (("img", "photo", "fine"), {"image_column": "photo"}, ("photo", "fine")),
        (("img", "fine", "coarse"), {"label_column": "coarse"}, ("img", "coarse")),
        (("img", "fine", "number"), {"label_column": "number"}, ("img", "number")),
    ],
)
def test_columns_are_found_by_type_or_name(columns, named, found):
    assert find_columns(table(*columns), DataSettings(**named)) == found


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({}, r"several columns of images; set data\.image_column among: img, photo"),
        ({"image_column": "img"}, r"several columns of class labels.* data\.label_column among: fine, coarse"),
        (
            {"image_column": "imgs"},
            r"data\.image_column 'imgs': .* no such column; .* img \(Image\), .*weight \(float32\)",
        ),
        ({"image_column": "fine"}, r"data\.image_column 'fine' does not hold images; .* photo \(Image\)"),
        (
            {"image_column": "img", "label_column": "x"},
            r"data\.label_column 'x': .* no such column; .* fine \(ClassLabel\)",
        ),
        ({"image_column": "img", "label_column": "weight"}, r"data\.label_column 'weight' does not hold class labels"),
    ],
)
def test_a_column_that_cannot_be_used_is_named(named, message):
    with pytest.raises(UserError, match=message):
        find_columns(table(*TYPES), DataSettings(**named))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("text", "fine"), "no column of images; .* text"),
        (("img", "weight"), "no column of class labels.* img .Image."),
    ],
)
def test_what_is_not_there_is_said(columns, message):
    with pytest.raises(UserError, match=message):
        find_columns(table(*columns), DataSettings())


@pytest.mark.parametrize(
    ("column", "kind"), [("label", "float64"), ("Target", "bool"), ("labels", "(List|Sequence|list)")]
)
def test_no_other_column_takes_the_place_of_labels_that_are_no_classes(column, kind):
    """pandas makes floats of integers where one is missing; beside them a `number` may count the rows."""
    with pytest.raises(
        UserError, match=rf"Column '{column}' holds {kind}, which are not classes; .* data\.label_column"
    ):
        find_columns(table("img", column, "number", "text"), DataSettings())
    assert find_columns(table("img", column, "number", "text"), DataSettings(label_column="text")).label == "text"
    assert find_columns(table("img", column, "fine"), DataSettings()).label == "fine"


def test_numbers_of_rows_are_no_classes():
    rows = {"train": table(number=list(range(30))), "test": table(number=[0, 1])}
    with pytest.raises(UserError, match=r"numbers up to 29 in 30 rows of split 'train'.*do not look like classes"):
        read_labels(rows, DataSettings(), "number")
    assert len(read_labels(rows, DataSettings(num_classes=30), "number")[1]) == 30


@pytest.mark.parametrize("column", ["fine", "text"])
def test_a_number_of_classes_that_is_not_the_datas_is_refused(column):
    rows = {"train": table(**{column: [0, 1] if column == "fine" else ["cat", "dog"]})}
    assert read_labels(rows, DataSettings(num_classes=2), column)[1] == ["cat", "dog"]
    with pytest.raises(UserError, match=r"data\.num_classes is 3, but the data names 2 classes; leave it out"):
        read_labels(rows, DataSettings(num_classes=3), column)


def test_labels_are_read_from_every_split_with_their_names():
    labels, names = read_labels({"train": table(fine=[0, 1, 1]), "test": table(fine=[1])}, DataSettings(), "fine")
    assert names == ["cat", "dog"] and [list(of_split) for of_split in labels.values()] == [[0, 1, 1], [1]]
    labels, names = read_labels({"train": table(byte=[0, 2, 1, 1]), "test": table(byte=[3])}, DataSettings(), "byte")
    assert names == ["0", "1", "2", "3"] and all(of_split.dtype == np.int64 for of_split in labels.values())


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 0], [0, 0, -1], "Row 2 of split 'validation' has no label in 'number'"),
        ([0, None, 1], [0], "Row 1 of split 'train' has no label in 'number'"),
        ([0, 1], [], "Split 'validation' is empty"),
        ([7, 1, 900], [0], r"up to 900 in 3 rows of split 'train': .* data\.label_column .* data\.num_classes"),
    ],
)
def test_labels_that_cannot_be_used_are_named(train, test, message):
    with pytest.raises(UserError, match=message):
        read_labels({"train": table(number=train), "validation": table(number=test)}, DataSettings(), "number")


def test_the_number_of_classes_can_be_said():
    few = {"train": table(number=[0, 2]), "test": table(number=[1, 7])}
    labels, names = read_labels(few, DataSettings(num_classes=10), "number")
    assert names == [str(number) for number in range(10)]
    assert [list(of_split) for of_split in labels.values()] == [[0, 2], [1, 7]]
    with pytest.raises(UserError, match=r"Row 1 of split 'test' has label 7 .* there are 7 classes.* num_classes"):
        read_labels(few, DataSettings(num_classes=7), "number")


def test_words_are_classes_in_sorted_order():
    labels, names = read_labels(
        {"train": table(text=["dog", "cat", "dog"]), "test": table(text=["ant"])}, DataSettings(), "text"
    )
    assert names == ["ant", "cat", "dog"] and [list(of_split) for of_split in labels.values()] == [[2, 1, 2], [0]]
    _, names = read_labels({"train": table(text=["10", "9", "10"])}, DataSettings(), "text")
    assert names == ["9", "10"]
    for missing in (None, ""):
        with pytest.raises(UserError, match="Row 1 of split 'train' has no label in 'text'"):
            read_labels({"train": table(text=["dog", missing])}, DataSettings(), "text")


def test_words_that_are_no_classes_have_to_be_named():
    captions = {"train": table(text=[f"a picture of {number}" for number in range(20)])}
    with pytest.raises(UserError, match=r"20 different words in 20 rows, too many for classes; .* data\.label_column"):
        read_labels(captions, DataSettings(), "text")
    assert len(read_labels(captions, DataSettings(label_column="text"), "text")[1]) == 20


def test_classes_in_another_order_are_matched_by_name():
    tables = {"train": table(fine=[0, 1]), "test": table(fine=[0, 1])}
    labels, names = read_labels(tables, DataSettings(), "fine", {"test": ["dog", "cat"]})
    assert names == ["cat", "dog"] and [list(of_split) for of_split in labels.values()] == [[0, 1], [1, 0]]
    labels, names = read_labels(tables, DataSettings(), "fine", {"test": ["wolf", "cat"]})
    assert names == ["cat", "dog", "wolf"] and list(labels["test"]) == [2, 0]
    for wrong, message in (
        (["x", "y"], "cannot be matched: 'cat' .* and 'x'"),
        (["dog", "dog"], "names a class twice"),
    ):
        with pytest.raises(UserError, match=message):
            read_labels(tables, DataSettings(), "fine", {"test": wrong})


def test_a_missing_split_names_those_there_are():
    splits = {"train": 1, "validation": 2}
    assert pick_split(splits, DataSettings(test_split="validation"), "test_split") == "validation"
    assert pick_split(splits, DataSettings(), "test_split") == "validation"
    with pytest.raises(UserError, match=r"no split 'other'.*data\.test_split among: train, validation"):
        pick_split(splits, DataSettings(test_split="other"), "test_split")
