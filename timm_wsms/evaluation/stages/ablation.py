"""Which stage carries the decision at each object size: what the network predicts without one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from timm_wsms.data import Loader
from timm_wsms.data.progress import progress
from timm_wsms.evaluation.object_size.curve import AllSizes
from timm_wsms.evaluation.significance import bootstrap_interval
from timm_wsms.evaluation.stages.cam import several_stages
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.object_scaling import Border
from timm_wsms.utils import eval_mode

if TYPE_CHECKING:
    from accelerate import Accelerator


def predict_without_stages(
    model: nn.Module,
    loader: Loader,
    accelerator: Accelerator,
    factors: Sequence[float],
    border: Border = "mean",
) -> np.ndarray:
    """Predictions with what each stage gives in turn replaced by its mean over the data set at that size.

    A mean map is what the integration layer is used to, but says nothing about the image. With `residual`, stage 1's
    map is replaced on both of its paths, direct and through the integration layer. With `fusion="mean"`, a stage's
    logits are replaced. Every image is read twice: for the means, and for the predictions.

    Args:
        model: A network of several stages; its mode is restored.
        loader: Evaluation loader of a whole split, in this process alone.
        accelerator: Gives the device and the precision.
        factors: F factors of the object's size.
        border: What surrounds a smaller object.

    Returns:
        int64 (F, 1 + S, n): of the whole network, then without stage 1, without stage 2 …, for the n images that can be
        decoded, in order.

    Raises:
        UserError: The model has no such stages; the message says which model has.
    """
    network = several_stages(model)
    images, size = AllSizes(loader, factors, border, accelerator.device), len(loader.split)
    means = [StageMeans() for _ in factors]
    with eval_mode(network), accelerator.autocast():
        for index, batch, _ in progress(images, "means of the stages"):
            means[int(index[0]) // size].add(network, batch)
        predicted = np.full((len(factors), 2 + len(network.stages), size), -1)
        for index, batch, _ in progress(images, "without each stage"):
            place = int(index[0]) // size
            found = logits_without_stages(network, batch, means[place]).argmax(2)  # (1 + S, b)
            predicted[place][:, index.numpy() - place * size] = found.cpu().numpy()
    return predicted[:, :, predicted[0, 0] >= 0]


def stage_outputs(network: Any, images: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
    """A batch (b, C, H, W) → the backbone's features, and each stage's map; with `fusion="mean"` none, and logits."""
    return ([], [*network.stage_logits(images)]) if isinstance(network, WsmsMeanNet) else network.stage_maps(images)


def logits_from(network: Any, features: Any, outputs: list[torch.Tensor]) -> torch.Tensor:
    """What `stage_outputs` gives → the network's logits (b, classes)."""
    if isinstance(network, WsmsMeanNet):
        return torch.stack(outputs).mean(0)
    return network.forward_head(network.merged(features, network.integration(outputs)))


class StageMeans:
    """The mean over images of the backbone's features and of what every stage gives."""

    def __init__(self) -> None:
        self.sums: list[torch.Tensor] = []
        self.count = 0

    def add(self, network: MultiStageNet, images: torch.Tensor) -> None:
        """Takes a batch (b, C, H, W) in."""
        features, outputs = stage_outputs(network, images)
        sums = [one.float().sum(0) for one in (*_several(features), *outputs)]
        self.sums = [old + new for old, new in zip(self.sums, sums, strict=True)] if self.sums else sums
        self.count += len(images)

    def like(self, features: Any, outputs: list[torch.Tensor]) -> tuple[Any, list[torch.Tensor]]:
        """The means in place of a batch's features and what its stages give."""
        given = [*_several(features), *outputs]
        means = [(total / self.count).to(one).expand_as(one) for total, one in zip(self.sums, given, strict=True)]
        own, means = means[: -len(outputs)], means[-len(outputs) :]
        return (own if isinstance(features, (list, tuple)) else own[0]), means


def logits_without_stages(network: MultiStageNet, images: torch.Tensor, means: StageMeans) -> torch.Tensor:
    """The logits of a batch, and those without stage 1, without stage 2 …, (1 + S, b, classes)."""
    features, outputs = stage_outputs(network, images)
    blank_features, blanks = means.like(features, outputs)
    found = [logits_from(network, features, outputs)]
    for stage, blank in enumerate(blanks):
        others = [*outputs[:stage], blank, *outputs[stage + 1 :]]
        found.append(logits_from(network, features if stage else blank_features, others))
    return torch.stack(found)


def _several(features: Any) -> list[torch.Tensor]:
    return list(features) if isinstance(features, (list, tuple)) else [features]


@dataclass(frozen=True)
class StageDrops:
    """How much of a network's accuracy each stage carries at each object size.

    Attributes:
        factors: F factors of the object's size.
        top1: Accuracy of the whole network in percent, F values.
        drop: Points lost without each stage, S lists of F values; negative where the network is better without it.
        interval: Their 95 % bootstrap intervals, by image, likewise.
    """

    factors: tuple[float, ...]
    top1: list[float]
    drop: list[list[float]]
    interval: list[list[tuple[float, float]]]


def stage_drops(predicted: np.ndarray, label: np.ndarray, factors: Sequence[float], seed: int = 0) -> StageDrops:
    """The figures that follow from predictions without stages.

    Args:
        predicted: From `predict_without_stages`, (F, 1 + S, n).
        label: True classes, (n,).
        factors: F of them.
        seed: Seed of the bootstrap.
    """
    hits = predicted == label
    lost = 100.0 * (hits[:, :1].astype(int) - hits[:, 1:]).swapaxes(0, 1)  # (S, F, n)
    low, high = bootstrap_interval(lost, seed)
    interval = np.stack([low, high], -1).tolist()  # (S, F, 2)
    return StageDrops(
        tuple(factors),
        (100 * hits[:, 0].mean(1)).tolist(),
        lost.mean(2).tolist(),
        [[(a, b) for a, b in one] for one in interval],
    )
