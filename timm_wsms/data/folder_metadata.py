"""Labels in a table next to the images of a folder, `metadata.csv` or `metadata.jsonl`."""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_wsms.data.settings import DataSettings
from timm_wsms.errors import UserError
from timm_wsms.utils import composed

if TYPE_CHECKING:
    from timm_wsms.data.image_folder import FolderSplit

METADATA = ("metadata.csv", "metadata.jsonl")
LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "target")  # of columns, in any case
FILE_NAME = "file_name"  # the column that names the images, as `datasets` has it
Rows = dict[Path, dict[str, Any]]


def read(top: Path, root: Path) -> Rows:
    """The rows of the tables in a split's folder and in the folder above, by the file they are about.

    Raises:
        UserError: a table cannot be read, has no column of file names, or has two different rows for a file.
    """
    rows: Rows = {}
    for folder in dict.fromkeys((root, top)):
        for name in METADATA:
            if (folder / name).is_file():
                for row in _read_table(folder / name):
                    path = folder / str(row.pop(FILE_NAME))
                    if rows.get(path, row) != row:
                        raise UserError(
                            f"{folder / name}: {_below(path, folder)} has two rows that differ; remove one of them."
                        )
                    if path.is_relative_to(top):
                        rows[path] = row
    return rows


def _read_table(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = (
                list(csv.DictReader(file))
                if path.suffix == ".csv"
                else [json.loads(line) for line in file if line.strip()]
            )
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); it must be a table in UTF-8.") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or None in row:  # where `csv` puts cells beyond the last column
            raise UserError(f"{path}: row {number} does not have the columns of a table; fix it.")
        if not row.get(FILE_NAME):
            raise UserError(f"{path}: row {number} has no {FILE_NAME}; name the image of each row there.")
    return rows


def _below(path: Path, folder: Path) -> Path:
    """A path relative to a folder, which it may not be in."""
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def label_column(rows: Rows, settings: DataSettings, *, flat: bool) -> str | None:
    """The column of labels; None where the class folders are the labels.

    Args:
        rows: from `read`.
        settings: `label_column` is used.
        flat: there are no class folders.

    Raises:
        UserError: there is no such column, or it is not known which it is.
    """
    option, named = settings.option("label_column"), settings.label_column
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    if named is not None:
        if named in columns:
            return named
        if flat or named != "label":  # what the classes of folders are called
            there = ", ".join(columns) or "there is no metadata.csv"
            raise UserError(f"{option} {named!r}: there is no such column in the metadata; the columns are: {there}.")
        return None
    if not flat:
        return None
    usual = [name for name in columns if name.casefold() in LABEL_NAMES] or columns
    if len(usual) != 1:
        raise UserError(f"metadata has several columns; set {option} among: {', '.join(columns) or '(none)'}.")
    return usual[0]


def label(split: "FolderSplit", files: list[Path], rows: Rows, column: str, top: Path, root: Path) -> None:
    """Gives a split the images that have a label in the table.

    Raises:
        UserError: a row has no file.
    """
    images, split.labelled = set(files), True
    for path in rows:
        if path not in images:
            raise UserError(
                f"{_below(path, root)} is listed in the metadata of {top}, but is not an image there; remove the row."
            )
    for path in files:
        value = rows.get(path, {}).get(column)
        if value in (None, ""):
            split.leave_out(f"without {column} in the metadata", str(path.relative_to(root)))
            continue
        split.files.append(str(path))
        split.classes.append(composed(str(value)))
