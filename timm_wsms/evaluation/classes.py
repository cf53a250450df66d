"""Class by class: how often each is recognized, and what it is taken for."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from timm_wsms.evaluation.accuracy import Predictions
from timm_wsms.evaluation.plots import plot_confusion


@dataclass(frozen=True)
class ClassResult:
    """One class's results.

    Attributes:
        name: of the class.
        images: number of its images.
        top1: share of them that are recognized, in percent; None where there are no images.
        top5: share of them for which it is among the five likeliest, in percent; likewise.
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


def by_class(predictions: Predictions, class_names: Sequence[str]) -> list[ClassResult]:
    """Results of each class, in the classes' order.

    Args:
        predictions: of a whole data set or a part of it.
        class_names: one for each logit.
    """
    matrix = confusion(predictions, len(class_names))
    in_top5 = np.bincount(predictions.label[predictions.in_top5], minlength=len(class_names))
    mistakes = matrix - np.diag(np.diag(matrix))
    worst = mistakes.argmax(axis=1)
    return [
        ClassResult(
            name,
            images=(images := int(matrix[label].sum())),
            top1=100.0 * float(matrix[label, label] / images) if images else None,
            top5=100.0 * float(in_top5[label] / images) if images else None,
            taken_for=class_names[worst[label]] if mistakes[label].any() else None,
            times=int(mistakes[label].max()),
        )
        for label, name in enumerate(class_names)
    ]


def write_classes(predictions: Predictions, class_names: Sequence[str], folder: Path) -> None:
    """Writes `per_class.csv`, a line for each class, and `confusion.png` into a folder."""
    with (folder / "per_class.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(ClassResult)])
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, by_class(predictions, class_names)))
    plot_confusion(confusion(predictions, len(class_names)), class_names, folder / "confusion.png")
