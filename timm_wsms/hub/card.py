"""Fills a checkpoint folder's model card from the template MODEL_CARD.md.

All that a card says comes from the folder's own files. A value the template asks for and no file gives is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import timm
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

import timm_wsms  # noqa: F401  registers the names with timm
from timm_wsms.data import summary
from timm_wsms.errors import UserError
from timm_wsms.evaluation import markdown_table
from timm_wsms.files import atomic_write_text
from timm_wsms.foreign import clean, code, markdown, read_json, read_last_line, read_yaml, understood
from timm_wsms.hub import diagram, results

TEMPLATE = Path(__file__).with_name("MODEL_CARD.md")  # the one at the top of the repository is a link to it
STAGED = ("wsms_", "ms_", "wsmean_")
REPO = r"\w[\w.-]*/\w[\w.-]*"  # a name on the Hub


class Markdown(str):
    """Text that is already Markdown; all other text in a card is escaped."""


def write(folder: Path, repo: str | None = None, template: Path = TEMPLATE) -> Path:
    """Writes `<folder>/README.md` and returns its path; the arguments and errors are those of `render`."""
    text = render(folder, repo, template)
    path = Path(folder) / "README.md"
    atomic_write_text(path, text)
    return path


def render(folder: Path, repo: str | None = None, template: Path = TEMPLATE) -> str:
    """The text of a model card.

    Args:
        folder: Checkpoint folder: config.json, settings.yaml, metrics.jsonl, results.json, and plots if there are any.
        repo: `owner/name` on the Hub, where it is or will be; None if it is not published.
        template: Jinja's; it sees the names of `values`.

    Raises:
        UserError: A file is missing, the template asks for a value that no file has, or the front matter is not valid.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True, finalize=_escaped
    )
    environment.filters["code"] = lambda value: Markdown(code(str(value)))
    try:
        with understood(f"{folder}: a file that its card is made from"):
            known = values(folder)
            text = environment.from_string(template.read_text(encoding="utf-8")).render(known, repo=repo)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {Path(error.filename).name}, which its card needs; train it again") from error
    text = re.sub(r"\n{3,}", "\n\n", text)  # conditions that are false leave blank lines
    try:
        ModelCard(text)  # the client's own check of the front matter
    except ValueError as error:
        raise UserError(f"the Hub would refuse the card's front matter: {error}") from error
    return text


def _escaped(value: Any) -> Any:
    """A value in the template: names of models, data and classes, settings and versions may come from strangers."""
    plain = value is None or isinstance(value, (Markdown, jinja2.Undefined, int, float))
    return value if plain else markdown(str(value))


def values(folder: Path) -> dict[str, Any]:
    """What a checkpoint folder says about itself, under the names that the template uses."""
    folder = Path(folder)
    config = clean(read_json(folder / "config.json"))
    settings = clean(read_yaml(folder / "settings.yaml"))
    last = clean(read_last_line(folder / "metrics.jsonl"))
    found = results.read(folder)
    own = found.rows[-1]
    trained = found.taken.network if found.taken else config["architecture"]
    name, identifier = data_set(found.data or settings["data"]["source"])
    run_split = summary.evaluated_split(folder / summary.FILE) or settings["data"]["test_split"]
    known = {
        "architecture": config["architecture"],
        "staged": config["architecture"].startswith(STAGED),
        "averages": trained.startswith("wsmean_") or settings["model_kwargs"].get("fusion") == "mean",
        "shares_weights": not trained.startswith("ms_"),
        "config": config["pretrained_cfg"],
        "num_classes": config["num_classes"],
        "picture": Markdown(_picture(folder, config["pretrained_cfg"]["input_size"])),
        "settings": settings,
        "hardware": found.hardware,
        "own": own,
        "taken": found.taken,
        "baseline": found.rows[0].model if len(found.rows) > (2 if found.taken else 1) else None,
        "table": Markdown(markdown_table(found.rows)),
        "epochs": last["epoch"],
        "evaluated": found.evaluated,
        "other_images": len({tuple(row.input_size) for row in found.rows if row.input_size}) > 1,
        "top5": own.top5 if found.taken or found.evaluated else last["test_top5"],
        "data_name": name,
        "data_found": summary.card_lines(folder / summary.FILE),
        "test_split": found.evaluated.split if found.evaluated else run_split,
        "run_split": run_split,
        "base_model": base_model(settings),
        "weights_file": weights_file(settings),
        "has_scale_plot": (folder / "scale.png").is_file(),
    }
    return {**known, "front_matter": Markdown(_front_matter(known, identifier).to_yaml())}


def _front_matter(known: dict[str, Any], data_id: str | None) -> ModelCardData:
    figures = {"Top-1 accuracy (%)": known["own"].accuracy, "Top-5 accuracy (%)": known["top5"]}
    figures = {name: value for name, value in figures.items() if value is not None}
    base_model = known["base_model"]
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        license="apache-2.0",
        tags=["image-classification", "timm", "timm-wsms"],
        datasets=[data_id] if data_id else None,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        metrics=["accuracy"] if figures else None,
        model_name=known["architecture"],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=data_id or known["data_name"],
                dataset_name=known["data_name"],
                dataset_split=known["test_split"],
                metric_type="accuracy",
                metric_name=name,
                metric_value=round(value, 2),
            )
            for name, value in figures.items()
        ],
    )


def _picture(folder: Path, input_size: list[int]) -> str:
    with torch.device("meta"):  # no memory, no arithmetic
        return diagram.draw(timm.create_model(f"local-dir:{folder}"), input_size)


def data_set(source: str) -> tuple[str, str | None]:
    """Name and Hub name of the data. For a local folder, only its name is given: its path is private."""
    if source == "digits":
        return "scikit-learn digits at 8 to 32 pixels", None
    if re.fullmatch(REPO, source) and not Path(source).is_dir():
        return source, source
    return Path(source).name, None


def base_model(settings: dict[str, Any]) -> str | None:
    """The repo on the Hub whose weights a run started from, if it did; None for weights of another origin."""
    name = settings["model"]
    if not settings["model_kwargs"].get("pretrained"):
        return None
    given = _given_cfg(settings)
    found = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    own = name.removeprefix("hf-hub:") if name.startswith("hf-hub:") else found and found.hf_hub_id
    # in timm's order: a file, the Hub, an address
    if given.get("file") or not (repo := given.get("hf_hub_id") or own):
        return None
    repo = str(repo).partition("@")[0]
    if not re.fullmatch(REPO, repo):
        raise ValueError(f"{repo} is not a name on the Hub")
    return repo


def weights_file(settings: dict[str, Any]) -> str | None:
    """The name of the file whose weights a run started from, if the settings name one; its folder is private."""
    file = _given_cfg(settings).get("file")
    return Path(str(file)).name if settings["model_kwargs"].get("pretrained") and file else None


def _given_cfg(settings: dict[str, Any]) -> dict[str, Any]:
    """What the settings put in place of timm's own pretrained config, the overlay last, as timm does."""
    given: dict[str, Any] = {}
    for key in ("pretrained_cfg", "pretrained_cfg_overlay"):
        value = settings["model_kwargs"].get(key)
        given |= value if isinstance(value, dict) else {}
    return given
