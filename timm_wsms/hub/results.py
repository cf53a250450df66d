"""results.json of a checkpoint folder: the figures of the models trained together, and the hardware."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_wsms.evaluation import Row
from timm_wsms.foreign import clean, read_json, understood

FILE = "results.json"


@dataclasses.dataclass(frozen=True)
class Taken:
    """The origin of a plain model that was extracted from a network.

    Attributes:
        network: The network's architecture.
        stage: Number of the stage that the model is, counted from 1.
        factor: Size of the stage's image divided by that of stage 1's.
    """

    network: str
    stage: int
    factor: float


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What the rows' accuracies were measured on, if not on what the run was evaluated on.

    Attributes:
        split: Name of the split.
        images: Number of its images.
    """

    split: str
    images: int


@dataclasses.dataclass(frozen=True)
class Results:
    """What results.json holds.

    Attributes:
        rows: The models that were trained together; the folder's own is the last.
        hardware: What they were trained on, as `timm_wsms.training.environment.describe_environment` returns it.
        data: The data set's name on the Hub, if the run read it from a local folder; else None.
        taken: If the folder's model is a stage of a network, which one. The network's row is the last but one.
        evaluated: If it was evaluated again after training, on what.
    """

    rows: list[Row]
    hardware: dict[str, Any]
    data: str | None
    taken: Taken | None = None
    evaluated: Evaluated | None = None


def write(
    folder: Path,
    rows: Sequence[Row],
    hardware: Mapping[str, Any],
    data: str | None = None,
    taken: Taken | None = None,
    evaluated: Evaluated | None = None,
) -> None:
    """Writes results.json; for the arguments see `Results`."""
    content = {"rows": [dataclasses.asdict(row) for row in rows], "hardware": hardware, "data": data}
    if taken:
        content["taken"] = dataclasses.asdict(taken)
    if evaluated:
        content["evaluated"] = dataclasses.asdict(evaluated)
    (folder / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Results:
    """Reads results.json.

    Raises:
        FileNotFoundError: There is none.
        UserError: It is not what `write` writes.
    """
    content = clean(read_json(folder / FILE))
    with understood(folder / FILE):
        rows = [_row(row) for row in content["rows"]]
        figures = ((row.accuracy, row.top5, *row.by_size.values(), *row.by_factor.values()) for row in rows)
        if not rows or not all(_is_number(one) for of_row in figures for one in of_row):
            raise ValueError("accuracies must be numbers")
        taken, evaluated = content.get("taken"), content.get("evaluated")
        return Results(
            rows,
            content["hardware"],
            content["data"],
            Taken(**taken) if taken else None,
            Evaluated(**evaluated) if evaluated else None,
        )


def _row(content: dict[str, Any]) -> Row:
    """A row from JSON, whose keys are always strings."""
    by_size = {int(size): value for size, value in content["by_size"].items()}
    by_factor = {float(factor): value for factor, value in content.get("by_factor", {}).items()}
    return Row(**{**content, "by_size": by_size, "by_factor": by_factor})


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))
