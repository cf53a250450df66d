"""Accelerate's trackers: TensorBoard, Weights & Biases and others, in addition to metrics.jsonl."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from timm_wsms.errors import UserError
from timm_wsms.training.resume_check import flat
from timm_wsms.training.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "timm-wsms"


def check_trackers(names: list[str]) -> None:
    """Checks that these can be logged to; Accelerate would silently leave out those whose package is missing.

    Raises:
        UserError: Accelerate has no tracker of this name, or its package is missing.
    """
    # Accelerate documents neither; but it silently leaves out what it cannot start, and only these two tell before
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"there is no tracker {name}; Accelerate has {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if name not in map(str, get_available_trackers()):
            raise UserError(f"tracker {name} needs a package that is not installed: pip install {name}")


@contextmanager
def tracking(settings: Settings, accelerator: "Accelerator") -> Iterator[Callable[[dict[str, Any]], None]]:
    """Starts the run's trackers in process 0, and ends them whatever happens.

    Args:
        settings: the run's settings; they are logged too.
        accelerator: built with these settings.

    Yields:
        A function to call with each epoch's metrics: the numbers among them are logged, with the epoch as step.
    """
    plain = (bool, int, float, str)
    config = {
        name: value if isinstance(value, plain) else str(value)
        for name, value in flat(dataclasses.asdict(settings)).items()
    }
    accelerator.init_trackers(PROJECT, config)

    def track(row: dict[str, Any]) -> None:
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "epoch"}
        accelerator.log(numbers, step=row["epoch"])

    try:
        yield track
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
