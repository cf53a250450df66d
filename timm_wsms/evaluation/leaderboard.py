"""A file with one line of JSON per evaluated model, to which everyone can add."""

import json
import os
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timm_wsms.errors import UserError

PACKAGES = ("timm-wsms", "timm", "torch")


def entry(what: str, data: str, figures: dict[str, Any]) -> dict[str, Any]:
    """One line.

    Args:
        what: "accuracy", or "object_size" for accuracy against object size.
        data: the source; for a local folder, only its name is kept.
        figures: what was measured, and of which model.
    """
    source = Path(data).expanduser()
    return {
        "what": what,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": source.resolve().name if source.exists() else data,
        **figures,
        "versions": {package: version(package) for package in PACKAGES},
    }


def append(path: str, line: dict[str, Any]) -> None:
    """Adds a line to a file, in one write, so that several processes can add theirs.

    Raises:
        UserError: nothing can be written there.
    """
    text = json.dumps(line, ensure_ascii=False) + "\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"nothing can be added to {path} ({error.strerror}); choose another --append") from error
