"""Image folders: which files are images, of which split and of which class.

    FOLDER/split/class/…/image      if first-level folders name splits, only they do
    FOLDER/class/…/image            otherwise: one split, called train
    FOLDER/[split/]image            labels in `metadata.csv` or `metadata.jsonl` next to the images

The first level below the split is the class, whatever folders are below it, as in torchvision. Links are followed.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from timm_wsms.data import folder_metadata
from timm_wsms.data.class_names import in_order
from timm_wsms.data.folder_metadata import METADATA
from timm_wsms.data.folder_walk import JUNK, Id, identity_of, is_folder, scan, suffixes, walk, why_no_image
from timm_wsms.data.settings import DataSettings
from timm_wsms.data.split_names import SPLIT_WORDS, is_split_name, parse_split, split_remarks
from timm_wsms.errors import UserError
from timm_wsms.utils import composed

if TYPE_CHECKING:
    import datasets

TABLES = (".parquet", ".arrow")  # a folder that holds such files is not an image folder
ARCHIVES = (".tar", ".zip", ".jsonl", ".json", ".csv")  # nor is one that holds these and no images


@dataclass
class FolderSplit:
    """One split of an image folder.

    Attributes:
        files: the images, sorted by class and then by path.
        classes: the name of each one's class.
        passed_over: why files were left out → their paths, relative to the folder.
        labelled: the classes come from a table, not from folders.
        remarks: what a user should know.
    """

    files: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    passed_over: dict[str, list[str]] = field(default_factory=dict)
    labelled: bool = False
    remarks: list[str] = field(default_factory=list)

    def leave_out(self, why: str, path: str) -> None:
        self.passed_over.setdefault(why, []).append(path)


@dataclass
class ImageFolder:
    """What an image folder holds.

    Attributes:
        splits: by name.
        beside: what belongs to no split, as `FolderSplit.passed_over`.
        remarks: what a user should know.
    """

    splits: dict[str, FolderSplit]
    beside: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        """Class names of all splits, sorted as words; numbers in a table of labels as numbers."""
        names = {name for split in self.splits.values() for name in split.classes}
        return in_order(names, numbers=any(split.labelled for split in self.splits.values()))

    def tables(self) -> "dict[str, datasets.Dataset]":
        """Each split as rows of `image` (undecoded) and `label`."""
        import datasets
        import pyarrow as pa

        names = self.class_names
        number = {name: label for label, name in enumerate(names)}
        features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=names)})
        tables = {}
        for name, split in self.splits.items():
            nothing, paths = pa.nulls(len(split.files), pa.binary()), pa.array(split.files, pa.string())
            images = pa.StructArray.from_arrays([nothing, paths], names=["bytes", "path"])
            labels = pa.array([number[of_file] for of_file in split.classes], pa.int64())
            table = datasets.table.InMemoryTable(pa.table({"image": images, "label": labels}))
            tables[name] = datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
        return tables


def is_image_folder(folder: Path) -> bool:
    """Whether a folder is read as image files; otherwise as parquet or Arrow files, by `datasets`.

    Raises:
        UserError: there is nothing in it at all.
    """
    images = archives = False
    for path, _ in walk(folder):
        suffix = path.suffix.lower()
        if suffix in TABLES:
            return False
        images = images or (suffix in suffixes() and path.parent != folder)
        archives = archives or (suffix in ARCHIVES and path.name not in METADATA)
    return images or not archives


def read_image_folder(folder: Path, settings: DataSettings) -> ImageFolder:
    """Lists the images of a folder, by split and class.

    Args:
        folder: an existing one.
        settings: the names of splits and `label_column` are used.

    Raises:
        UserError: a file is in two splits, or twice in one; a link leads back to a folder above it; there are no
            images, no classes, or rows of metadata without files.
    """
    tops = sorted((entry for entry in scan(folder) if is_folder(entry)), key=lambda entry: entry.name)
    named = {parse_split(name).name for name in (settings.train_split, settings.test_split)}
    splits = [entry.name for entry in tops if is_split_name(entry.name, named) and _holds_classes(Path(entry.path))]
    seen: dict[Id, str] = {}
    if not splits:
        found = ImageFolder({"train": _read_split(folder, folder, settings, seen)})
        _check_splits_above_classes(folder, found.splits["train"])
        _check_splits_without_classes(folder, found.splits["train"], named)
    else:
        found = ImageFolder({name: _read_split(folder / name, folder, settings, seen) for name in splits})
        _look_beside(folder, splits, found, settings)
    _check_classes(folder, found, settings)
    for name, split in found.splits.items():
        found.remarks += [f"split {name}: {remark}" for remark in split.remarks]
    return found


def _read_split(top: Path, root: Path, settings: DataSettings, seen: dict[Id, str]) -> FolderSplit:
    split, found = FolderSplit(), []
    rows = folder_metadata.read(top, root)
    for path, identity in walk(top, () if top == root else ((identity_of(root), root),)):
        if path.name in METADATA:
            continue
        if why := why_no_image(path):
            split.leave_out(why, str(path.relative_to(root)))
            continue
        _check_once(path, root, identity, seen)
        found.append((composed(path.relative_to(top).parts[0]), path))
    found.sort(key=lambda pair: (pair[0], pair[1].parts))
    flat = bool(rows) and all(path.parent == top for _, path in found)
    column = folder_metadata.label_column(rows, settings, flat=flat)
    named = sorted({name for row in rows.values() for name in row})
    split.remarks += split_remarks({name: [row.get(name) for row in rows.values()] for name in named})
    if column:
        folder_metadata.label(split, [path for _, path in found], rows, column, top, root)
        return split
    for path in (path for _, path in found if path.parent == top):
        split.leave_out("in no class folder", str(path.relative_to(root)))
    found = [(name, path) for name, path in found if path.parent != top]
    split.files = [str(path) for _, path in found]
    split.classes = [name for name, _ in found]
    inner = sorted({"/".join(path.relative_to(top).parts[:2]) for _, path in found if _is_deeper(path, top)})
    if inner:
        split.remarks.append(f"the first level of folders is the class; images in {_few(inner)} belong to that class")
    if named:
        option = settings.option("label_column")
        split.remarks.append(f"the folders are the classes; {option} would take them from metadata: {_few(named)}")
    folders = {entry.name for entry in scan(top) if is_folder(entry)}
    filled = set(split.classes)
    for name in sorted(name for name in folders if composed(name) not in filled):
        split.leave_out("folders without images", str((top / name).relative_to(root)))
    return split


def _is_deeper(path: Path, top: Path) -> bool:
    return len(path.relative_to(top).parts) > 2


def _check_once(path: Path, root: Path, identity: Id, seen: dict[Id, str]) -> None:
    """Refuses a file that was seen before, through links of either kind."""
    before = seen.setdefault(identity, str(path))
    # Inode numbers may repeat on layered file systems, so check again.
    if before != str(path) and os.path.samefile(before, path):
        paths = " and ".join(str(Path(one).relative_to(root)) for one in (before, path))
        raise UserError(f"{root}: {paths} are one and the same file; keep one of them.")


def _holds_classes(folder: Path) -> bool:
    """Whether a folder that has a split's name is one: it holds folders, or images with a table of their labels."""
    entries = scan(folder)
    return any(is_folder(entry) or entry.name in METADATA for entry in entries)


def _look_beside(folder: Path, splits: list[str], found: ImageFolder, settings: DataSettings) -> None:
    """Passes over what lies next to the split folders, unless it may be classes next to a class called `train`."""
    outside = FolderSplit()
    with_images = []
    for entry in sorted(scan(folder), key=lambda entry: entry.name):
        if entry.name in splits or entry.name in METADATA or (entry.is_dir() and entry.name in JUNK):
            continue
        if not entry.is_dir():
            outside.leave_out(why_no_image(Path(entry.path)) or "images next to the split folders", entry.name)
            continue
        images = sum(path.suffix.lower() in suffixes() for path, _ in walk(Path(entry.path)))
        if not images and entry.name.casefold() in SPLIT_WORDS:
            found.remarks.append(f"there are no images in folder {entry.name!r}, which has the name of a split")
        if images:
            with_images.append(entry.name)
            outside.leave_out("folders next to the split folders", f"{entry.name} ({images} images)")
    options = f"{settings.option('train_split')} or {settings.option('test_split')}"
    if with_images and len(splits) == 1:
        raise UserError(
            f"{folder}: folder {splits[0]!r} names a split and holds folders of classes, but {_few(with_images)} next"
            f" to it hold images too; move them into {splits[0]}, or out of {folder}, or say with {options} that they"
            " are splits."
        )
    found.beside = outside.passed_over


def _check_splits_above_classes(folder: Path, split: FolderSplit) -> None:
    """Refuses `class/split/image`, and a folder that holds only the data's folder."""
    if split.labelled:
        return
    below: dict[str, set[str]] = {}
    for file, name in zip(split.files, split.classes, strict=True):
        below.setdefault(name, set()).add(Path(file).relative_to(folder).parts[1].casefold())
    if below and all(len(inner) > 1 and inner <= SPLIT_WORDS for inner in below.values()):
        names = sorted(below)
        if len(names) == 1:
            raise UserError(f"{folder} holds one folder, which holds the splits; name {folder / names[0]}.")
        raise UserError(
            f"{folder}: the splits are below the classes ({names[0]}/{min(below[names[0]])}); an image folder is"
            " split/class/image."
        )


def _check_splits_without_classes(folder: Path, split: FolderSplit, named: set[str]) -> None:
    """Refuses `train/image` and `test/image`: these are splits without labels, not classes."""
    names = sorted(set(split.classes))
    if names and not split.labelled and all(is_split_name(name, named) for name in names):
        raise UserError(
            f"{folder}: {_few(names)} are names of splits, but the images in them lie in no class folders. An image"
            " folder is split/class/image; or put a metadata.csv (file_name,label) next to them."
        )


def _check_classes(folder: Path, found: ImageFolder, settings: DataSettings) -> None:
    option = settings.option("source")
    for name, split in found.splits.items():
        if split.files:
            continue
        stray = split.passed_over.get("in no class folder")
        what = f"the images of split {name} lie in no class folder ({_few(stray)})" if stray else "there are no images"
        if not stray and len(found.splits) > 1:
            what = f"there are no images in split {name}"
        others = [f"{why}: {_few(paths)}" for why, paths in split.passed_over.items() if paths is not stray]
        raise UserError(
            f"{option} {str(folder)!r}: {what}. Put an image folder (split/class/image or class/image) or parquet files"
            f" there, or a metadata.csv (file_name,label) next to the images. {'; '.join(others)}"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
