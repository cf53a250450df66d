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
    "coarse": datasets.ClassLabel(names=["pet"]),
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
        ({"image_column": "img"}, r"several columns of class labels .* data\.label_column among: fine, coarse"),
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
        ({"image_column": "img", "label_column": "text"}, r"data\.label_column 'text' does not hold class labels"),
    ],
)
def test_a_column_that_cannot_be_used_is_named(named, message):
    with pytest.raises(UserError, match=message):
        find_columns(table(*TYPES), DataSettings(**named))


@pytest.mark.parametrize(
    ("columns", "message"),
    [(("text", "fine"), "no column of images; .* text"), (("img", "text"), "no column of class labels .* img .Image.")],
)
def test_what_is_not_there_is_said(columns, message):
    with pytest.raises(UserError, match=message):
        find_columns(table(*columns), DataSettings())


def test_labels_are_read_from_every_split_with_their_names():
    tables = [table(fine=[0, 1, 1]), table(fine=[1])]
    labels, names = read_labels(tables, DataSettings(), "fine")
    assert names == ["cat", "dog"] and [list(of_split) for of_split in labels] == [[0, 1, 1], [1]]
    labels, names = read_labels([table(byte=[0, 2, 1, 1]), table(byte=[3])], DataSettings(), "byte")
    assert names == ["0", "1", "2", "3"] and all(of_split.dtype == np.int64 for of_split in labels)


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
        read_labels([table(number=train), table(number=test)], DataSettings(test_split="validation"), "number")


def test_the_number_of_classes_can_be_said():
    few = [table(number=[0, 2]), table(number=[1, 7])]
    labels, names = read_labels(few, DataSettings(num_classes=10), "number")
    assert names == [str(number) for number in range(10)] and [list(of_split) for of_split in labels] == [
        [0, 2],
        [1, 7],
    ]
    with pytest.raises(UserError, match=r"Row 1 of split 'test' has label 7 .* there are 7 classes.* num_classes"):
        read_labels(few, DataSettings(num_classes=7), "number")


def test_a_missing_split_names_those_there_are():
    splits = {"train": 1, "validation": 2}
    assert pick_split(splits, DataSettings(test_split="validation"), "test_split") == 2
    with pytest.raises(UserError, match=r"no split 'test'; set data\.test_split among: train, validation"):
        pick_split(splits, DataSettings(), "test_split")
