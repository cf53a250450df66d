"""Checkpoints that have been published: each is a pretrained tag of its own, ahead of timm's.

published.json lists them; `python -m timm_wsms.publish … --register` adds to it.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg

from timm_wsms.files import atomic_write_text
from timm_wsms.foreign import read_json, understood

FILE = Path(__file__).with_name("published.json")
DESCRIBES = ("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "num_classes",
             "pool_size", "first_conv", "classifier", "license")  # fmt: skip
TEXTS = ("name", "tag", "repo", "revision", "sha256")


@dataclass(frozen=True)
class Published:
    """One published checkpoint.

    Attributes:
        name: Architecture, `wsms_<backbone>`, built with its default arguments.
        tag: `<name>.<tag>` loads it.
        repo: On the Hugging Face Hub.
        revision: The commit, 40 hexadecimal digits.
        sha256: SHA-256 of its model.safetensors.
        accuracy: Top-1 in percent, as its card says.
        config: What timm's `PretrainedCfg` says about input and head; the fields of `DESCRIBES`.
    """

    name: str
    tag: str
    repo: str
    revision: str
    sha256: str
    accuracy: float
    config: dict[str, Any]

    @property
    def hub_id(self) -> str:
        """Repo and revision as timm writes them."""
        return f"{self.repo}@{self.revision}"

    def pretrained_cfg(self) -> PretrainedCfg:
        """The tag's entry in timm's registry. Its source marks the weights as the network's, not a backbone's."""
        return PretrainedCfg(hf_hub_id=self.hub_id, source="hf-hub", **self.config)


def published(file: Path | None = None) -> list[Published]:
    """All entries of published.json, the newest first.

    Raises:
        UserError: It is damaged.
    """
    file = file or FILE
    entries = read_json(file)
    with understood(file):
        return [_read(entry) for entry in entries]


def _read(entry: dict[str, Any]) -> Published:
    """One entry; fields that are unknown to this version are left out."""
    read = {field.name: entry[field.name] for field in fields(Published)}
    if not all(isinstance(read[name], str) for name in TEXTS):
        raise ValueError(f"{', '.join(TEXTS)} must be texts")
    return Published(**{**read, "config": {key: read["config"][key] for key in DESCRIBES if key in read["config"]}})


def register(entry: Published) -> None:
    """Writes an entry at the front of published.json; it replaces one of the same name and tag."""
    others = [other for other in published() if (other.name, other.tag) != (entry.name, entry.tag)]
    text = json.dumps([asdict(one) for one in (entry, *others)], indent=2)
    atomic_write_text(FILE, text + "\n")


def sha256(hub_id: str) -> str | None:
    """The checksum of the weights at `repo@revision`, if they are listed."""
    return next((entry.sha256 for entry in published() if entry.hub_id == hub_id), None)
