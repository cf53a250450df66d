"""Opens a source with `datasets`, and picks its splits."""

from pathlib import Path
from typing import Any, TypeVar

from timm_wsms.data.settings import DataSettings
from timm_wsms.errors import UserError

T = TypeVar("T")
SPLITS = ("train_split", "test_split")  # the settings that name them


def open_source(settings: DataSettings) -> "dict[str, Any]":
    """Opens all splits of a local folder, or of a data set on the Hub.

    Args:
        settings: of which `source`, `config` and `streaming` count.

    Returns:
        A `datasets.Dataset` for each split's name, or a `datasets.IterableDataset`.

    Raises:
        UserError: if there is no such folder or data set, or the Hub cannot be reached.
    """
    import datasets

    source, option = settings.source, settings.option("source")
    folder = Path(source).expanduser()
    local = folder.exists()
    if folder.is_file():
        raise UserError(f"{option} {source!r} is a file; name the folder it is in.")
    if not local and (source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source):
        raise UserError(f"{option} {source!r}: there is no such folder; mend the path.")
    try:
        return datasets.load_dataset(str(folder) if local else source, settings.config, streaming=settings.streaming)
    except MemoryError:
        raise
    except Exception as error:  # the many readers and the network raise many things, all about this source
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = one_line(cause or error)
        if local:
            remedy = "Put an image folder (split/class/image) or parquet files there"
            raise UserError(
                f"{option} {source!r}: no images can be read from this folder. {remedy}. {reason}"
            ) from error
        raise UserError(f"{_hub_remedy(settings, error)} {reason}") from error


def _hub_remedy(settings: DataSettings, error: Exception) -> str:
    """What is wrong, and what to do, when the Hub did not deliver."""
    from huggingface_hub import get_token

    source = settings.source
    if isinstance(error, ConnectionError) or "LocalEntryNotFoundError" in str(error):
        offline = f", with {settings.option('streaming')}=false" if settings.streaming else ""
        return (
            f"{source!r} is no local folder, and the Hub cannot be reached. Check the network; or fetch it where there"
            f" is one (python -c \"import datasets; datasets.load_dataset('{source}')\"), copy its HF_HOME here and set"
            f" HF_HUB_OFFLINE=1{offline}; or name a local folder."
        )
    if "is a gated dataset" in str(error):  # `datasets` tells by nothing else
        page = f"https://huggingface.co/datasets/{source}"
        if get_token() is None:
            return f"{source!r} is gated: accept its terms at {page}, then log in (hf auth login, or set HF_TOKEN)."
        return f"{source!r} is gated, and your token has no access: accept its terms at {page} with the same account."
    return (
        f"{source!r} is no local folder, and the Hub did not deliver it. Mend {settings.option('source')} or"
        f" {settings.option('config')}; log in (hf auth login, or set HF_TOKEN) if it is private; or name a local"
        " folder."
    )


def one_line(error: BaseException) -> str:
    """What an error says, in brackets."""
    return " ".join(f"({type(error).__name__}: {error})".split())


def pick_split(splits: dict[str, T], settings: DataSettings, part: str) -> T:
    """The split that a setting names.

    Raises:
        UserError: if there is none of that name, with the names there are.
    """
    name = getattr(settings, part)
    if name not in splits:
        there = ", ".join(sorted(splits))
        raise UserError(f"The data has no split {name!r}; set {settings.option(part)} among: {there}.")
    return splits[name]


def empty_split(settings: DataSettings, part: str) -> str:
    """The message about a split without images."""
    return f"Split {getattr(settings, part)!r} is empty; set {settings.option(part)} to another."
