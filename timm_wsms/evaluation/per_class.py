"""Class by class: how often each is recognized, and what it is mistaken for."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from timm_wsms.evaluation.accuracy import Predictions
from timm_wsms.evaluation.plots import plot_confusion, plot_mistakes

MOST_CLASSES = 20  # that a readable confusion matrix can have
MOST_MISTAKES = 30


@dataclass(frozen=True)
class ClassResult:
    """One class's results.

    Attributes:
        name: name of the class.
        images: number of its images.
        top1: share of them that are recognized, in percent; None where there are no images.
        top5: share of them for which it is among the five most likely, in percent; likewise.
        taken_for: the class that its images are most often taken for by mistake; None if they never are.
        times: how often.
    """

    name: str
    images: int
    top1: float | None
    top5: float | None
    taken_for: str | None
    times: int


def confusion(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Number of images of each class that are taken for each class.

    Returns:
        int64 (num_classes, num_classes); a row is a true class, a column a predicted one.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix  # takes seconds

    predicted, label = map(torch.from_numpy, (predictions.predicted, predictions.label))
    return multiclass_confusion_matrix(predicted, label, num_classes, validate_args=False).numpy()


def mistakes(predictions: Predictions) -> list[tuple[int, int, int]]:
    """(true class, predicted class, count) of each mistake, the most frequent first.

    A list, since a matrix of 21,000 classes would not fit into memory.
    """
    wrong = ~predictions.correct
    pairs = np.stack([predictions.label[wrong], predictions.predicted[wrong]], axis=1)  # (n, 2)
    found, times = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-times, kind="stable")
    return [(*pair, count) for pair, count in zip(found[order].tolist(), times[order].tolist(), strict=True)]


def by_class(predictions: Predictions, class_names: Sequence[str]) -> list[ClassResult]:
    """Results of each class, in the classes' order.

    Args:
        predictions: predictions for a whole data set or a part of it.
        class_names: one for each logit.
    """
    images, right, in_top5 = (
        np.bincount(labels, minlength=len(class_names)).tolist()
        for labels in (
            predictions.label,
            predictions.label[predictions.correct],
            predictions.label[predictions.in_top5],
        )
    )
    worst: dict[int, tuple[str, int]] = {}
    for label, predicted, times in mistakes(predictions):
        worst.setdefault(label, (class_names[predicted], times))
    return [
        ClassResult(
            name,
            count,
            100.0 * right[label] / count if count else None,
            100.0 * in_top5[label] / count if count else None,
            *worst.get(label, (None, 0)),
        )
        for label, (name, count) in enumerate(zip(class_names, images, strict=True))
    ]


def write_classes(predictions: Predictions, class_names: Sequence[str], folder: Path) -> None:
    """Writes `per_class.csv`, a line for each class, and `confusion.png` into a folder.

    The picture is the confusion matrix, or, of more than 20 classes, the most frequent mistakes.
    """
    results = by_class(predictions, class_names)
    with (folder / "per_class.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(ClassResult)])
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, results))
    if len(class_names) <= MOST_CLASSES:
        plot_confusion(confusion(predictions, len(class_names)), class_names, folder / "confusion.png")
    else:
        most = mistakes(predictions)[:MOST_MISTAKES]
        named = [(class_names[one], class_names[other], times, results[one].images) for one, other, times in most]
        plot_mistakes(named, folder / "confusion.png")
