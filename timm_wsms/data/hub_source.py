"""Opens a source: image folders by ourselves, everything else with `datasets`."""

import glob
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from timm_wsms.data.columns import Columns, find_columns
from timm_wsms.data.image_folder import is_image_folder, read_image_folder
from timm_wsms.data.settings import DataSettings
from timm_wsms.data.split_names import (
    SPLIT_COLUMNS,
    SPLIT_WORDS,
    find_split,
    others_like,
    parse_split,
    split_remarks,
)
from timm_wsms.data.stored_names import Names, names_of_splits
from timm_wsms.errors import UserError

T = TypeVar("T")


class NoSuchSplitError(UserError):
    """There is no split of the requested name."""


@dataclass
class Source:
    """What a source holds.

    Attributes:
        splits: a `datasets.Dataset` for each split's name, or a `datasets.IterableDataset`.
        columns: those of an image folder; otherwise they have to be found.
        sizes: number of images of the splits of an image folder, known even if it is streamed.
        class_names: split → column → names, where the files of a split have their own order.
        passed_over: split → why files were left out → their paths; those of no split under "".
        remarks: what a user should know.
    """

    splits: dict[str, Any]
    columns: Columns | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    class_names: dict[str, Names] = field(default_factory=dict)
    passed_over: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def find_columns(self, split: str, settings: DataSettings) -> Columns:
        """The columns of images and labels of a split."""
        return self.columns or find_columns(self.splits[split], settings)

    def names_in(self, column: str) -> dict[str, list[str]]:
        """The class names of a column, by split, where files have stored some."""
        return {split: names[column] for split, names in self.class_names.items() if column in names}

    def unused(self, used: Collection[str]) -> list[str]:
        """Remarks about what is not used: splits with the same meaning as used ones, columns that divide the images."""
        found = others_like(used, self.splits)
        for split in used if self.columns is None else ():
            table = self.splits[split]
            if hasattr(table, "unique"):  # a stream would have to be read
                named = [name for name in table.column_names if name.casefold() in SPLIT_COLUMNS]
                remarks = split_remarks({name: table.unique(name) for name in named})
                found += [f"split {split}: {remark}" for remark in remarks]
        return found


def open_source(settings: DataSettings) -> Source:
    """Opens all splits of a local folder, or of a data set on the Hub.

    Args:
        settings: `source`, `config`, `streaming`, the names of splits and `label_column` are used.

    Raises:
        UserError: if there is no such folder or data set, it cannot be read, or the Hub cannot be reached.
    """
    import datasets

    source, option = settings.source, settings.option("source")
    folder = Path(source).expanduser()
    local = folder.exists()
    if folder.is_file():
        raise UserError(f"{option} {source!r} is a file; name the folder it is in.")
    if not local and (source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source):
        raise UserError(f"{option} {source!r}: there is no such folder; fix the path.")
    if local and is_image_folder(folder):
        return _open_image_folder(folder, settings)
    try:
        return _open_with_datasets(folder if local else None, settings)
    except (MemoryError, UserError):
        raise
    except Exception as error:  # the readers and the network may raise anything, all about this source
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = one_line(cause or error)
        if local:
            remedy = "Put an image folder (split/class/image) or parquet files there"
            raise UserError(
                f"{option} {source!r}: no images can be read from this folder. {remedy}. {reason}"
            ) from error
        raise UserError(f"{_hub_remedy(settings, error)} {reason}") from error


def _open_image_folder(folder: Path, settings: DataSettings) -> Source:
    if settings.image_column not in (None, "image"):
        raise UserError(
            f"{settings.option('image_column')}: {folder} is an image folder, without columns; leave it out."
        )
    found = read_image_folder(folder, settings)
    tables: dict[str, Any] = found.tables()
    sizes = {name: len(table) for name, table in tables.items()}
    if settings.streaming:
        tables = {name: table.to_iterable_dataset() for name, table in tables.items()}
    passed_over = {name: split.passed_over for name, split in found.splits.items() if split.passed_over}
    if found.beside:
        passed_over[""] = found.beside
    return Source(tables, Columns("image", "label"), sizes, passed_over=passed_over, remarks=found.remarks)


def _open_with_datasets(folder: Path | None, settings: DataSettings) -> Source:
    import datasets

    if folder is None:
        return Source(datasets.load_dataset(settings.source, settings.config, streaming=settings.streaming))
    if glob.escape(str(folder)) != str(folder):
        return _open_with_brackets(folder, settings)
    files = datasets.load_dataset_builder(str(folder), settings.config).config.data_files or {}
    names = names_of_splits(files)
    return Source(datasets.load_dataset(str(folder), settings.config, streaming=settings.streaming), class_names=names)


def _open_with_brackets(folder: Path, settings: DataSettings) -> Source:
    """Opens a folder of parquet files whose path `datasets` takes for a pattern, such as `[2024] photos`."""
    import datasets

    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        words = re.split(r"[\W\d_]+", str(file.relative_to(folder)).casefold())
        split = next((word for word in words if word in SPLIT_WORDS), "train")
        found.setdefault(split, []).append(str(file))
    escaped = {split: list(map(glob.escape, files)) for split, files in found.items()}
    splits = datasets.load_dataset("parquet", data_files=escaped, streaming=settings.streaming)
    return Source(splits, class_names=names_of_splits(found))


def _hub_remedy(settings: DataSettings, error: Exception) -> str:
    """What is wrong, and what to do, when the Hub did not deliver."""
    from huggingface_hub import get_token

    source = settings.source
    if isinstance(error, ConnectionError) or "LocalEntryNotFoundError" in str(error):
        offline = f", with {settings.option('streaming')}=false" if settings.streaming else ""
        return (
            f"{source!r} is not a local folder, and the Hub cannot be reached. Check the network; or fetch it elsewhere"
            f" (python -c \"import datasets; datasets.load_dataset('{source}')\"), copy its HF_HOME here and set"
            f" HF_HUB_OFFLINE=1{offline}; or name a local folder."
        )
    if "is a gated dataset" in str(error):  # the only sign that `datasets` gives
        page = f"https://huggingface.co/datasets/{source}"
        if get_token() is None:
            return f"{source!r} is gated: accept its terms at {page}, then log in (hf auth login, or set HF_TOKEN)."
        return f"{source!r} is gated, and your token has no access: accept its terms at {page} with the same account."
    return (
        f"{source!r} is not a local folder, and the Hub did not deliver it. Fix {settings.option('source')} or"
        f" {settings.option('config')}; log in (hf auth login, or set HF_TOKEN) if it is private; or name a local"
        " folder."
    )


def one_line(error: BaseException) -> str:
    """What an error says, in brackets."""
    return " ".join(f"({type(error).__name__}: {error})".split())


def pick_split(splits: dict[str, T], settings: DataSettings, setting: str) -> str:
    """The name of the split that a setting means, which may be another spelling of it.

    Args:
        splits: by name.
        settings: `setting` is used.
        setting: `train_split` or `test_split`.

    Raises:
        UserError: if there is none of that name; lists the names.
    """
    wanted = parse_split(getattr(settings, setting)).name
    found = find_split(wanted, splits)
    if found is not None:
        return found
    option, there = settings.option(setting), ", ".join(sorted(splits))
    if setting == "test_split":
        raise NoSuchSplitError(
            f"The data has no split {wanted!r} to evaluate on; keep a part of the training images for that with"
            f" {settings.option('holdout')}=0.2, or set {option} among: {there}."
        )
    raise NoSuchSplitError(f"The data has no split {wanted!r}; set {option} among: {there}.")
