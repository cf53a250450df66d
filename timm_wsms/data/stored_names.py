"""Names of classes as each file of a source has them, which `datasets` takes from the first file it meets."""

import json
import textwrap
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
        UserError: if an Arrow file is damaged, a file is in two splits, or files of one split have other names, or
            another order.
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
            metadata = _of_arrow(path)
        else:
            return {}
        features: dict[str, Any] = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: feature["names"]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and _are_words(feature.get("names"))
        }
    except UserError:
        raise
    # none, or `datasets` will say what is wrong with it
    except (AttributeError, KeyError, TypeError, RecursionError, ValueError, OSError, pa.ArrowException):
        return {}


def _are_words(names: Any) -> bool:
    return isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)


def _of_arrow(path: str) -> dict[bytes, bytes] | None:
    """The metadata of an Arrow file that is whole: `datasets` would allocate as many bytes as a damaged one claims.

    Raises:
        UserError: it is not whole.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(path) as file:  # no claim goes beyond its end
            try:
                stream = pa.ipc.open_stream(file)
            except (OSError, pa.ArrowInvalid):  # the other of Arrow's two formats
                return pa.ipc.open_file(file).schema.metadata
            for _ in stream:
                pass
            return stream.schema.metadata
    except (OSError, pa.ArrowException) as error:
        why = textwrap.shorten(str(error), 160, placeholder=" …")
        raise UserError(f"{path} is not a whole Arrow file ({why}); copy it again.") from error
