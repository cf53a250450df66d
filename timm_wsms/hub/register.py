"""Makes a published checkpoint a pretrained tag: `<architecture>.<tag>`, listed in timm_wsms/hub/published.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import timm

from timm_wsms.errors import UserError
from timm_wsms.foreign import read_json, understood
from timm_wsms.hub import card, published, results
from timm_wsms.hub.download import file_sum
from timm_wsms.hub.verify_folder import WEIGHTS, check_files, check_outputs


def check_default(model: Any, folder: Path, tag: str) -> None:
    """Check that a checkpoint can be a tag: that a network built by name alone computes the same from its weights.

    Raises:
        UserError: It cannot.
    """
    if not re.fullmatch(r"[a-z0-9_]+", tag):
        raise UserError(f"--register {tag}: a tag consists of small letters, digits and underscores")
    name, described = read(folder)
    if not name.startswith(("wsms_", "wsmean_")):
        raise UserError(f"{name} cannot have tags of its own; load it by its name on the Hub")
    plain = timm.create_model(name, pretrained_cfg=described)
    try:
        plain.load_state_dict(model.state_dict())
        check_outputs(plain, folder)
    except (RuntimeError, UserError) as error:
        raise UserError(
            f"this model has arguments other than the defaults of {name}, so it cannot be a tag of that name; leave "
            "out --register"
        ) from error


def data_tag(folder: Path) -> str:
    """A tag made from the data set's name."""
    check_files(folder)
    name = card.values(folder)["data_name"].rpartition("/")[2]
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


def add(folder: Path, tag: str, repo: str, commit: str) -> str:
    """Adds a checkpoint in a repo at a commit to published.json; returns what to print."""
    name, described = read(folder)
    accuracy: Any = results.read(folder).rows[-1].accuracy  # which every network's folder has
    published.register(
        published.Published(
            name=name,
            tag=tag,
            repo=repo,
            revision=commit,
            sha256=file_sum(folder / WEIGHTS, "sha256"),
            accuracy=round(accuracy, 2),
            config={key: described[key] for key in published.DESCRIBES if key in described},
        )
    )
    return f"registered as {name}.{tag}: commit {published.FILE.name}"


def read(folder: Path) -> tuple[str, dict[str, Any]]:
    """Architecture, and what config.json says about input and head."""
    config = read_json(folder / "config.json")
    with understood(folder / "config.json"):
        return config["architecture"], {**config["pretrained_cfg"], "num_classes": config["num_classes"]}
