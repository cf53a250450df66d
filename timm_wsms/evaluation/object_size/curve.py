"""Accuracy against the factor by which the object's size is changed: predictions, and figures computed from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from timm_wsms.data import Batch, Loader
from timm_wsms.errors import UserError
from timm_wsms.evaluation.accuracy import predict
from timm_wsms.evaluation.significance import bootstrap_interval, mcnemar
from timm_wsms.object_scaling import Border, rescale_object

if TYPE_CHECKING:
    from accelerate import Accelerator

FACTORS = tuple(2 ** (step / 2) for step in range(-4, 5))  # 0.25 to 4 in steps of √2


class AllSizes:
    """A loader's batches at each of several sizes, so that every image is read and decoded only once.

    Number i of n images at the factor at place k has index k · n + i.
    """

    def __init__(self, loader: Loader, factors: Sequence[float], border: Border, device: torch.device):
        self.loader, self.factors, self.border, self.device = loader, factors, border, device

    def __iter__(self) -> Iterator[Batch]:
        for index, images, labels in self.loader:
            images = images.to(self.device, non_blocking=True)
            for place, factor in enumerate(self.factors):
                resized = rescale_object(images, factor, self.border)
                yield Batch(index + place * len(self.loader.split), resized, labels)

    def __len__(self) -> int:
        return len(self.loader) * len(self.factors)

    @property
    def skipped(self) -> int:
        """Number of entries left out, one for each size of an image that cannot be decoded."""
        return self.loader.skipped * len(self.factors)


@dataclass(frozen=True)
class SizePredictions:
    """What a model predicted for each image at each size.

    Attributes:
        factors: F factors of the object's size, ascending, including 1.
        index: Place of the image in its split, (n,) int64, ascending.
        label: True class, (n,) int64.
        predicted: Predicted class, (F, n) int64.
    """

    factors: tuple[float, ...]
    index: np.ndarray
    label: np.ndarray
    predicted: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Whether the prediction is the true class, (F, n) bool."""
        return self.predicted == self.label

    @property
    def at_one(self) -> int:
        """The place of factor 1."""
        return self.factors.index(1.0)

    @property
    def area(self) -> np.ndarray:
        """Each image's share of log size at which it is recognized, (n,): their mean is the area under the curve."""
        return area_weights(self.factors) @ self.correct


@dataclass(frozen=True)
class SizeCurve:
    """A model's accuracy against object size, in percent, with the ends of 95 % bootstrap intervals.

    Attributes:
        factors: Factors of the object's size.
        top1: At each of them.
        interval: Interval of `top1`.
        consistency: Share of images for which the model predicts the same as at size 1, right or wrong, at each size
            (after Zhang 2019, Making convolutional networks shift-invariant again, Section 4.2).
        at_one: Accuracy at size 1, as `timm_wsms.evaluate` gives it.
        area: Area under the curve over log size, divided by its width: the mean accuracy over log size.
        area_interval: Interval of `area`.
        worst: The lowest accuracy.
        worst_factor: Where it is.
        mean_consistency: Mean over all sizes but 1; None if there is no other.
    """

    factors: tuple[float, ...]
    top1: list[float]
    interval: list[tuple[float, float]]
    consistency: list[float]
    at_one: float
    area: float
    area_interval: tuple[float, float]
    worst: float
    worst_factor: float
    mean_consistency: float | None


def check_factors(factors: Sequence[float]) -> tuple[float, ...]:
    """Sizes in ascending order, each once, with 1 among them.

    Raises:
        UserError: one of them is not positive.
    """
    if not all(0 < factor < float("inf") for factor in factors):
        raise UserError(f"object sizes must be positive factors, not {', '.join(f'{factor:g}' for factor in factors)}")
    return tuple(sorted({1.0, *map(float, factors)}))


def predict_sizes(
    model: nn.Module,
    loader: Loader,
    accelerator: Accelerator,
    factors: tuple[float, ...] = FACTORS,
    border: Border = "mean",
    progress: bool = False,
) -> SizePredictions:
    """Runs a model over a split at each size. At factor 1 the images are the loader's own.

    Args:
        model: Images (b, C, H, W) to logits (b, classes).
        loader: Evaluation loader of a whole split, or this process's share.
        accelerator: As for `predict`.
        factors: From `check_factors`.
        border: What surrounds an object that was made smaller.
        progress: Show a progress bar.
    """
    images = AllSizes(loader, factors, border, accelerator.device)
    found = predict(model, images, accelerator, len(loader.split) * len(factors), progress=progress)
    first = found.predicted.reshape(len(factors), -1)
    n = first.shape[1]
    return SizePredictions(factors, found.index[:n], found.label[:n], first)


def area_weights(factors: Sequence[float]) -> np.ndarray:
    """The weight of each size in the area under the curve over log size (trapezoids), divided by its width, (F,)."""
    if len(factors) == 1:
        return np.ones(1)
    steps = np.diff(np.log(factors))
    return (np.append(steps, 0) + np.append(0, steps)) / (2 * steps.sum())


def size_curve(found: SizePredictions, seed: int = 0) -> SizeCurve:
    """The figures that follow from predictions.

    Args:
        found: From `predict_sizes`.
        seed: Seed of the bootstrap.
    """
    hits = found.correct
    top1, same = 100 * hits.mean(1), 100 * (found.predicted == found.predicted[found.at_one]).mean(1)
    low, high = (100 * end for end in bootstrap_interval(np.vstack([hits, found.area]), seed))
    worst = int(top1.argmin())
    others = np.delete(same, found.at_one)
    return SizeCurve(
        found.factors,
        top1.tolist(),
        [*zip(low[:-1].tolist(), high[:-1].tolist(), strict=True)],
        same.tolist(),
        float(top1[found.at_one]),
        100 * float(found.area.mean()),
        (float(low[-1]), float(high[-1])),
        float(top1[worst]),
        found.factors[worst],
        float(others.mean()) if len(others) else None,
    )


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        factors: Factors of the object's size.
        only_first: Number of images that only the first model gets right, at each size.
        only_second: Number that only the second gets right.
        p: p-value of McNemar's exact test, at each size; not corrected for multiple tests.
        area_difference: Area under the second's curve minus the first's, in points.
        area_interval: Its 95 % bootstrap interval, by image.
    """

    factors: tuple[float, ...]
    only_first: list[int]
    only_second: list[int]
    p: list[float]
    area_difference: float
    area_interval: tuple[float, float]


def comparison_rows(comparisons: Mapping[tuple[str, str], Comparison]) -> list[dict[str, Any]]:
    """Comparisons of pairs of named models, as rows for JSON."""
    return [
        {"first": first, "second": second, **dataclasses.asdict(found)}
        for (first, second), found in comparisons.items()
    ]


def compare(first: SizePredictions, second: SizePredictions, seed: int = 0) -> Comparison:
    """Compares two models, image by image.

    Raises:
        ValueError: They were not given the same images at the same sizes.
    """
    if first.factors != second.factors or not np.array_equal(first.index, second.index):
        raise ValueError("the two models were not evaluated on the same images at the same sizes")
    tests = [mcnemar(one, other) for one, other in zip(first.correct, second.correct, strict=True)]
    only_first, only_second, p = (list(column) for column in zip(*tests, strict=True))
    difference = 100 * (second.area - first.area)
    low, high = bootstrap_interval(difference, seed)
    return Comparison(first.factors, only_first, only_second, p, float(difference.mean()), (float(low), float(high)))
