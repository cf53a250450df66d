"""When a run has stopped getting better."""

import pytest

from timm_wsms.training.run_state import RunState


def stops_after(accuracies: list[float | None], epochs: int | None) -> int | None:
    """The epoch after which a run with these accuracies stops; None for an epoch that is not measured."""
    rows = [
        {"epoch": number} | ({} if accuracy is None else {"test_top1": accuracy})
        for number, accuracy in enumerate(accuracies, start=1)
    ]
    return next((number for number in range(len(rows) + 1) if RunState(rows[:number]).stopped_improving(epochs)), None)


@pytest.mark.parametrize(
    ("accuracies", "epochs", "last"),
    [
        ([10, 20, 15, 19, 30, 5, 5], None, None),
        ([10, 20, 15, 19, 30, 5, 5], 2, 4),
        ([10, 20, 15, 19, 30, 5, 5], 3, None),
        ([10, 20, 20, 20], 2, 4),  # as good is no better
        ([10, 20, None, 15, None, 15], 3, 6),  # epochs count that were not measured
        ([None, None, None], 1, None),
        ([5, 4], 1, 2),
    ],
)
def test_so_many_epochs_without_a_better_one(accuracies, epochs, last):
    assert stops_after(accuracies, epochs) == last
