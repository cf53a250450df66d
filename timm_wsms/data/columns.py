"""Finds the columns of images and labels, and reads labels."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from timm_wsms.data.hub_source import SPLITS, empty_split
from timm_wsms.data.settings import DataSettings
from timm_wsms.errors import UserError

if TYPE_CHECKING:
    import datasets

UNLABELLED = -1  # the Hub's convention, for test splits whose labels are held back


class Columns(NamedTuple):
    """The names of the columns of images and of labels."""

    image: str
    label: str


def find_columns(table: "datasets.Dataset", settings: DataSettings) -> Columns:
    """Finds the columns of images and of labels by their types, where the settings do not name them.

    Args:
        table: a split.
        settings: of which `image_column` and `label_column` count.

    Raises:
        UserError: if there is no such column, or several; with the columns there are.
    """
    import datasets

    features = table.features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    integers = [name for name, feature in features.items() if _is_integer(feature)]
    return Columns(
        _choose("image_column", settings, images, images, "images", features),
        _choose(
            "label_column", settings, classes or integers, classes + integers, "class labels or integers", features
        ),
    )


def _is_integer(feature: Any) -> bool:
    return type(feature).__name__ == "Value" and feature.dtype.startswith(("int", "uint"))


def _choose(
    setting: str, settings: DataSettings, found: list[str], allowed: list[str], what: str, features: dict[str, Any]
) -> str:
    """The column that a setting names, or else the only one that is found."""
    named, option = getattr(settings, setting), settings.option(setting)
    there = ", ".join(f"{name} ({_describe(feature)})" for name, feature in features.items())
    if named is not None:
        if named not in features:
            raise UserError(f"{option} {named!r}: there is no such column; the columns are: {there}.")
        if named not in allowed:
            raise UserError(f"{option} {named!r} does not hold {what}; the columns are: {there}.")
        return named
    if not found:
        raise UserError(
            f"The data has no column of {what}; its columns are: {there}. Name another {settings.option('source')}."
        )
    if len(found) > 1:
        raise UserError(f"The data has several columns of {what}; set {option} among: {', '.join(found)}.")
    return found[0]


def _describe(feature: Any) -> str:
    return feature.dtype if type(feature).__name__ == "Value" else type(feature).__name__


def bad_label(row: str, label: int, column: str, class_names: list[str]) -> str:
    """The message about a row whose label is none of the classes.

    Args:
        row: which row of which split.
        label: what it has.
        column: where.
        class_names: of the classes.
    """
    if label < 0:
        return f"Row {row} has no label in {column!r}; set another split, or label it."
    return (
        f"Row {row} has label {label} in {column!r}, but there are {len(class_names)} classes, counted from 0; mend the"
        " labels, or choose another label_column or num_classes."
    )


def read_labels(
    tables: list["datasets.Dataset"], settings: DataSettings, column: str
) -> tuple[list[np.ndarray], list[str]]:
    """Reads the labels of all splits.

    Args:
        tables: the splits to train on and to evaluate on, which both have the column.
        settings: of which `num_classes` and the names of splits count.
        column: the column of labels.

    Returns:
        labels: int64 (n,) per split.
        class_names: one per class; the numbers themselves where the labels are plain integers.

    Raises:
        UserError: if a split is empty or has rows without a label, or if the numbers cannot be classes.
    """
    labels = []
    names = settings.train_split, settings.test_split
    for table, part in zip(tables, SPLITS, strict=True):
        if len(table) == 0:
            raise UserError(empty_split(settings, part))
        stored = table.select_columns([column]).with_format("arrow")[:][column]
        values = stored.cast("int64", safe=False).fill_null(UNLABELLED).to_numpy().copy()  # (n,), ours to write to
        labels.append(values)
    class_names = getattr(tables[0].features[column], "names", None)
    if class_names is None:
        count = settings.num_classes or max(int(values.max()) for values in labels) + 1
        if settings.num_classes is None and count > len(labels[0]):  # an identifier, perhaps
            raise UserError(
                f"Column {column!r} has numbers up to {count - 1} in {len(labels[0])} rows of split {names[0]!r}: these"
                f" are no classes counted from 0; set {settings.option('label_column')} to another, or say"
                f" {settings.option('num_classes')}."
            )
        class_names = [str(label) for label in range(count)]
    for values, name in zip(labels, names, strict=True):
        if len(wrong := np.flatnonzero((values < 0) | (values >= len(class_names)))):
            row = wrong[0]
            raise UserError(bad_label(f"{row} of split {name!r}", values[row], column, class_names))
    return labels, list(class_names)
