"""The rows of the paper's Table 2 and our averaging form: their networks, losses and recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

import timm_wsms  # noqa: F401  registers the names
from timm_wsms.network.mean_net import StageOutputs

EPOCHS, BATCH, MOMENTUM, WEIGHT_DECAY = 164, 128, 0.9, 1e-4  # recipes/cifar10_resnet110.yaml


@dataclass(frozen=True)
class Form:
    """A network of the table.

    Attributes:
        name: In the report.
        model: timm's name for it.
        kwargs: Of the model.
        paper: Error in % that the paper gives, a mean of five runs; None: it has no such row.
    """

    name: str
    model: str
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    paper: float | None = None

    @property
    def slug(self) -> str:
        return self.name.lower().replace(" ", "_")


WSMS = "wsms_resnet110_cifar"
FORMS = {
    form.name: form
    for form in (
        Form("plain", "resnet110_cifar", paper=6.61),
        Form("WSMS 1x1", WSMS, {"integration": "conv1x1"}, 6.36),
        Form("mean", "wsmean_resnet110_cifar"),
        Form("WSMS none", WSMS, {"integration": "none"}, 7.23),
        Form("WSMS 3x3", WSMS, {"integration": "conv3x3"}, 6.41),
        Form("MS 1x1", "ms_resnet110_cifar", {"integration": "conv1x1"}, 6.41),
    )
}


def build(form: Form, seed: int) -> Any:
    """The network as `train_accelerate.py` starts it; an averaging one gives each stage's logits in training."""
    torch.manual_seed(seed)
    network = timm.create_model(form.model, **form.kwargs)
    if hasattr(network, "set_stagewise_training"):
        network.set_stagewise_training()
    for norm in norms(network):
        norm.num_batches_tracked = None  # counts for nothing here, and takes a kernel per norm and step
    return network.train()


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def loss_of(outputs: torch.Tensor | StageOutputs, labels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cross-entropy; of averaging networks that of the mean plus the mean of the stages' own (`stage_loss: 1`)."""
    if not isinstance(outputs, StageOutputs):
        return F.cross_entropy(outputs.to(dtype), labels)
    logits = outputs.logits.to(dtype)  # (S, B, classes)
    own = torch.stack([F.cross_entropy(stage, labels) for stage in logits])
    return F.cross_entropy(logits.mean(0), labels) + own.mean()


def learning_rates(epochs: int = EPOCHS) -> list[float]:
    """Of every epoch: 0.01 in the first, then 0.1; of 164, 0.01 from the 82nd and 0.001 from the 123rd."""
    first, second = round(82 * epochs / EPOCHS), round(123 * epochs / EPOCHS)
    return [0.01 if epoch == 1 else 0.1 ** (1 + (epoch >= first) + (epoch >= second)) for epoch in range(1, epochs + 1)]
