"""Finds the columns of images and labels, and reads labels."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from timm_wsms.data.class_names import in_order
from timm_wsms.data.folder_metadata import LABEL_NAMES
from timm_wsms.data.settings import DataSettings
from timm_wsms.errors import UserError
from timm_wsms.utils import composed

if TYPE_CHECKING:
    import datasets

MOST_IN_FEW = 10  # classes of a column that no setting names, in a few rows
UNLABELLED = -1  # the Hub's convention, for test splits whose labels are held back


class Columns(NamedTuple):
    """The names of the columns of images and of labels."""

    image: str
    label: str


def find_columns(table: "datasets.Dataset", settings: DataSettings) -> Columns:
    """Finds the columns of images and of labels by their types and names, where the settings do not name them.

    Args:
        table: a split.
        settings: `image_column` and `label_column` are used.

    Raises:
        UserError: if there is no such column, or several; lists the columns.
    """
    import datasets

    features = table.features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    files = [name for name, feature in features.items() if _holds_files(feature)]
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    integers = [name for name, feature in features.items() if _is_value(feature, "int", "uint")]
    words = [name for name, feature in features.items() if _is_value(feature, "string", "large_string")]
    usual = [name for name in integers + words if name.casefold() in LABEL_NAMES]
    unfit = [name for name in features if name.casefold() in LABEL_NAMES and name not in classes + usual + images]
    if unfit and not classes and not usual and settings.label_column is None:  # no other column is meant then
        raise UserError(
            f"Column {unfit[0]!r} holds {_describe(features[unfit[0]])}, which are not classes; make them integers or"
            f" words, or name another {settings.option('label_column')}."
        )
    what = "class labels, integers or words"
    return Columns(
        _choose("image_column", settings, images or files, images + files, "images", features),
        _choose(
            "label_column", settings, classes or usual or integers or words, classes + integers + words, what, features
        ),
    )


def _is_value(feature: Any, *types: str) -> bool:
    return type(feature).__name__ == "Value" and feature.dtype.startswith(types)


def _holds_files(feature: Any) -> bool:
    """Whether a column may hold image files as bytes: plain, or as `bytes` next to a `path`."""
    return _is_value(feature, "binary", "large_binary") or (isinstance(feature, dict) and "bytes" in feature)


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
    """The message about a row whose label is not one of the classes.

    Args:
        row: which row of which split.
        label: what it has.
        column: where.
        class_names: names of the classes.
    """
    if label < 0:
        return f"Row {row} has no label in {column!r}; set another split, or label it."
    return (
        f"Row {row} has label {label} in {column!r}, but there are {len(class_names)} classes, counted from 0; fix the"
        " labels, or choose another label_column or num_classes."
    )


def read_labels(
    tables: "dict[str, datasets.Dataset]",
    settings: DataSettings,
    column: str,
    stored: dict[str, list[str]] | None = None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads the labels of splits.

    Args:
        tables: the splits by name; all have the column.
        settings: `num_classes` is used.
        column: the column of labels.
        stored: the class names of splits whose files have their own order.

    Returns:
        labels: int64 (n,) per split.
        class_names: one per class, of all these splits; the numbers themselves where the labels are plain integers.

    Raises:
        UserError: if a split is empty or has rows without a label, or if the labels cannot be classes.
    """
    for name, table in tables.items():
        if len(table) == 0:
            raise UserError(f"Split {name!r} is empty; set another.")
    cells = {name: table.select_columns([column]).with_format("arrow")[:][column] for name, table in tables.items()}
    feature = next(iter(tables.values())).features[column]
    if _is_value(feature, "string", "large_string"):
        return _number_words(cells, settings, column)
    # (n,) each, ours to write to
    labels = {
        name: of_split.cast("int64", safe=False).fill_null(UNLABELLED).to_numpy().copy()
        for name, of_split in cells.items()
    }
    declared = getattr(feature, "names", None)
    of_split = {name: (stored or {}).get(name) or declared for name in tables}
    if declared is None:
        names = _number_names(labels, settings, column)
        of_split = dict.fromkeys(tables, names)
    class_names, numbers = merge_names(of_split)  # type: ignore[arg-type]
    for name, values in labels.items():
        own = of_split[name] or []
        if len(wrong := np.flatnonzero((values < 0) | (values >= len(own)))):
            row = wrong[0]
            raise UserError(bad_label(f"{row} of split {name!r}", values[row], column, own))
        labels[name] = numbers[name][values]
    check_count(class_names, settings)
    return labels, class_names


def check_count(class_names: list[str], settings: DataSettings) -> None:
    """Refuses a `num_classes` in the settings that differs from the data's.

    Raises:
        UserError: it differs.
    """
    if settings.num_classes not in (None, len(class_names)):
        raise UserError(
            f"{settings.option('num_classes')} is {settings.num_classes}, but the data names {len(class_names)}"
            " classes; leave it out."
        )


def merge_names(of_splits: dict[str, list[str]]) -> tuple[list[str], dict[str, np.ndarray]]:
    """One list of classes for splits that may name them in different orders.

    Args:
        of_splits: each split's class names, in the order of its labels; the first split's order stays.

    Returns:
        class_names: names of all splits' classes, in Unicode's form NFC.
        numbers: per split, the class of each of its labels, int64 (its classes,).

    Raises:
        UserError: if a split names a class twice, or two splits have no name in common.
    """
    of_splits = {split: [composed(str(name)) for name in own] for split, own in of_splits.items()}
    (first, names), *others = of_splits.items()
    for split, own in others:
        if own != names and not set(own) & set(names):
            raise UserError(
                f"The classes of splits {first!r} and {split!r} cannot be matched: {names[0]!r} … and {own[0]!r} … have"
                " no name in common; give both the same names."
            )
    class_names = [*names, *sorted({name for _, own in others for name in own} - set(names))]
    place = {name: number for number, name in enumerate(class_names)}
    for split, own in of_splits.items():
        if own != class_names[: len(own)] and len(set(own)) < len(own):
            raise UserError(f"Split {split!r} names a class twice, so that its classes cannot be matched by name.")
    numbers = {
        split: np.arange(len(own)) if own == class_names[: len(own)] else np.array([place[name] for name in own])
        for split, own in of_splits.items()
    }
    return class_names, numbers


def _number_names(labels: dict[str, np.ndarray], settings: DataSettings, column: str) -> list[str]:
    """The numbers as names of classes."""
    count = settings.num_classes or max(int(values.max()) for values in labels.values()) + 1
    name, rows = next((name, len(values)) for name, values in labels.items())
    distinct = max(len(np.unique(values)) for values in labels.values())
    if settings.num_classes is None and (count > rows or distinct > max(rows // 2, MOST_IN_FEW)):  # numbers of rows?
        raise UserError(
            f"Column {column!r} has numbers up to {count - 1} in {rows} rows of split {name!r}: these do not look"
            f" like classes counted from 0; set {settings.option('label_column')} to another, or say"
            f" {settings.option('num_classes')}."
        )
    return [str(label) for label in range(count)]


def _number_words(
    cells: dict[str, Any], settings: DataSettings, column: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Words as classes, in sorted order; if all are whole numbers, in the order of these."""
    words = {name: [word and composed(word) for word in of_split.to_pylist()] for name, of_split in cells.items()}
    for name, of_split in words.items():
        if None in of_split or "" in of_split:
            row = next(row for row, word in enumerate(of_split) if not word)
            raise UserError(bad_label(f"{row} of split {name!r}", UNLABELLED, column, []))
    distinct = {word for of_split in words.values() for word in of_split}
    rows = sum(map(len, words.values()))
    if settings.label_column is None and len(distinct) > max(rows // 2, MOST_IN_FEW):  # captions or names of files?
        raise UserError(
            f"Column {column!r} has {len(distinct)} different words in {rows} rows, too many for classes; set"
            f" {settings.option('label_column')}, to {column!r} if it is the one."
        )
    class_names = in_order(distinct)
    check_count(class_names, settings)
    place = {word: number for number, word in enumerate(class_names)}
    return {name: np.array([place[word] for word in of_split]) for name, of_split in words.items()}, class_names
