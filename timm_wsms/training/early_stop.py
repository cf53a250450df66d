"""Whether a run has stopped getting better."""

from collections.abc import Sequence
from typing import Any


def no_better(metrics: Sequence[dict[str, Any]], epochs: int | None) -> bool:
    """Whether so many epochs have gone by since the one with the highest accuracy; of equals the first counts.

    It follows from what a checkpoint holds, so a resumed run stops where an uninterrupted one does.

    Args:
        metrics: one entry for each epoch done, with `test_top1` where it was measured.
        epochs: `early_stop`; None never stops.
    """
    measured = [row for row in metrics if "test_top1" in row]
    if epochs is None or not measured:
        return False
    best = max(measured, key=lambda row: row["test_top1"])
    return measured[-1]["epoch"] - best["epoch"] >= epochs
