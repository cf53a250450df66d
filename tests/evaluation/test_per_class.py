"""Class by class: against counts made one by one."""

import csv

import numpy as np
import pytest

from timm_wsms.evaluation import ClassResult, Predictions, by_class, confusion, mistakes, per_class, write_classes

NAMES = ["cat", "dog", "eel", "fox"]
LABEL = np.array([0, 0, 0, 0, 1, 1, 3, 0])
PREDICTED = np.array([0, 1, 2, 1, 1, 1, 0, 0])
IN_TOP5 = np.array([1, 1, 0, 0, 1, 1, 0, 1], dtype=bool)
FOUND = Predictions(np.arange(8), LABEL, PREDICTED, IN_TOP5)


def test_confusion_is_a_count():
    expected = np.zeros((4, 4), dtype=np.int64)
    for label, predicted in zip(LABEL, PREDICTED, strict=True):
        expected[label, predicted] += 1
    got = confusion(FOUND, 4)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == np.int64


def test_mistakes_are_the_matrix_beside_its_diagonal_the_most_frequent_first():
    matrix = confusion(FOUND, 4)
    expected = [(row, column, matrix[row, column]) for row in range(4) for column in range(4) if row != column]
    assert mistakes(FOUND) == sorted((one for one in expected if one[2]), key=lambda one: -one[2])


def test_by_class():
    assert by_class(FOUND, NAMES) == [
        ClassResult("cat", 5, 40.0, 60.0, "dog", 2),
        ClassResult("dog", 2, 100.0, 100.0, None, 0),
        ClassResult("eel", 0, None, None, None, 0),  # no images
        ClassResult("fox", 1, 0.0, 0.0, "cat", 1),
    ]


def test_a_single_class():
    found = Predictions(np.arange(2), np.zeros(2, np.int64), np.zeros(2, np.int64), np.ones(2, bool))
    assert by_class(found, ["all"]) == [ClassResult("all", 2, 100.0, 100.0, None, 0)]


def test_files(tmp_path):
    write_classes(FOUND, ["cat", "dog, or so", "eel", "fox"], tmp_path)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["cat", "dog, or so", "eel", "fox"]
    assert [float(row["top1"]) for row in rows if row["top1"]] == pytest.approx([40.0, 100.0, 0.0])
    assert rows[2]["top1"] == "" and rows[0]["taken_for"] == "dog, or so" and rows[0]["times"] == "2"
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_of_many_classes_the_most_frequent_mistakes_are_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(per_class, "plot_mistakes", lambda mistakes, path: drawn.append((mistakes, path)))
    label = np.repeat(np.arange(21_000), 2)
    predicted = label.copy()
    predicted[[8, 9, 40]] = 7, 7, 3
    write_classes(
        Predictions(np.arange(len(label)), label, predicted, predicted == label),
        [f"n{i}" for i in range(21_000)],
        tmp_path,
    )
    assert drawn == [([("n4", "n7", 2, 2), ("n20", "n3", 1, 2)], tmp_path / "confusion.png")]
    assert (tmp_path / "per_class.csv").read_text().splitlines()[5] == "n4,2,0.0,0.0,n7,2"
