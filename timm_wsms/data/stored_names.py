"""Names of classes as each file of a source has them, which `datasets` takes from the first file it meets."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_wsms.errors import UserError

Names = dict[str, list[str]]  # by column


def names_of_splits(files: Mapping[str, Sequence[str]]) -> dict[str, Names]:
    """The class names that local parquet and Arrow files of each split have stored.

    Args:
        files: paths by the name of the split.

    Returns:
        Split → column → names, in the order of the labels; without splits and columns that have none.

    Raises:
        UserError: if a file is in two splits, or files of one split have other names, or another order.
    """
    found: dict[str, Names] = {}
    owner: dict[str, str] = {}
    for split, paths in ((str(split), paths) for split, paths in files.items()):
        for path in map(str, paths):
            if owner.setdefault(path, split) != split:
                raise UserError(f"{path} is in two splits, {owner[path]!r} and {split!r}; rename it.")
            if not (names := _stored(path)):
                continue
            before = found.setdefault(split, names)
            if names != before:
                raise UserError(
                    f"{path} has other classes than the files before it of split {split!r}, or another order of them;"
                    " write them with the same names."
                )
    return found


def _stored(path: str) -> Names:
    """What `datasets` has written into a file's schema, by column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        return {}
    try:
        if path.endswith(".parquet"):
            metadata = pq.read_schema(path).metadata
        elif path.endswith(".arrow"):
            with pa.memory_map(path) as file:
                metadata = pa.ipc.open_stream(file).schema.metadata
        else:
            return {}
        features: dict[str, Any] = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, OSError, pa.ArrowException):  # none, or `datasets` will say what is wrong with it
        return {}
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }
