"""Fills a checkpoint folder's README.md, its model card, from the template MODEL_CARD.md.

All that a card says comes from the folder's own files and from values the caller names; nothing is guessed. A value the
template asks for and nobody gave is an error.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import yaml
from huggingface_hub import ModelCard


def fill(template_path: str | Path, folder: str | Path, **values: Any) -> Path:
    """Writes `<folder>/README.md`.

    The template is Jinja's. It sees the names of `folder_values` and, before them, `values`; None stands for what is
    known to be unknown. MODEL_CARD.md needs besides: `parameters`, `multiplications`, `top1`, `top5` (percent on the
    test data), `table` (Markdown, all models side by side), `baseline` (name of the plain backbone in `table`),
    `repo_id` (on the Hugging Face Hub) and `sizes_known` (whether `table` has columns for object sizes).

    Args:
        template_path: The template.
        folder: Checkpoint folder with config.json, settings.yaml and metrics.jsonl.
        values: What the template needs and the folder does not hold.

    Returns:
        Path of the card.

    Raises:
        ValueError: Placeholders have no value (the message names them), or the front matter is not valid.
        FileNotFoundError: The folder lacks one of the files.
    """
    text = Path(template_path).read_text(encoding="utf-8")
    known = {**folder_values(folder), **values}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    missing = sorted(jinja2.meta.find_undeclared_variables(environment.parse(text)) - set(known))
    if missing:
        raise ValueError(f"The card template needs values for: {', '.join(missing)}.")
    try:
        card = environment.from_string(text).render(known)
    except jinja2.UndefinedError as error:  # an attribute of a value that was given
        raise ValueError(f"The card template needs a value that is not there: {error}.") from error
    card = re.sub(r"\n{3,}", "\n\n", card)  # what a condition left out leaves blank lines
    ModelCard(card)  # raises ValueError for front matter that the Hub would refuse
    path = Path(folder) / "README.md"
    path.write_text(card, encoding="utf-8")
    return path


def folder_values(folder: str | Path) -> dict[str, Any]:
    """What a checkpoint folder says about itself.

    Returns:
        `architecture`, `config` (`pretrained_cfg` of config.json), `num_classes`, `settings` (the run's, nested),
        `epochs` (done), `data_name` and `data_id` (the data set's name on the Hub, or None).
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8"))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    name, identifier = _data_set(settings["data"]["source"])
    return {
        "architecture": config["architecture"],
        "config": config["pretrained_cfg"],
        "num_classes": config["num_classes"],
        "settings": settings,
        "epochs": json.loads(lines[-1])["epoch"] if lines else 0,
        "data_name": name,
        "data_id": identifier,
    }


def _data_set(source: str) -> tuple[str, str | None]:
    """Name and Hub name of the data. Of a local folder only its name is told, its path is nobody's business."""
    if source == "digits":
        return "scikit-learn digits at 8 to 32 pixels", None
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) and not Path(source).is_dir():
        return source, source
    return Path(source).name, None
