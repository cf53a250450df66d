"""The loss, and the mixing of images that it has to know of. Both are timm's and PyTorch's."""

from collections.abc import Callable

import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from torch.nn import functional as F

from timm_wsms.errors import UserError
from timm_wsms.training.settings import Settings

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def build_loss(settings: Settings) -> Loss:
    """Returns the loss of logits (b, classes) for labels, int64 (b,) or mixed, float (b, classes)."""
    if settings.loss == "bce":
        return BinaryCrossEntropy(smoothing=settings.label_smoothing, target_threshold=settings.bce_threshold)

    def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        smoothed = labels.is_floating_point()  # by timm's Mixup already
        return F.cross_entropy(logits, labels, label_smoothing=0.0 if smoothed else settings.label_smoothing)

    return cross_entropy


def with_stages(loss: Loss, weight: float) -> Loss:
    """Returns the loss of all stages' logits (stages, b, classes): of their mean, and of each by itself.

    Args:
        loss: of logits (b, classes).
        weight: of the mean of the stages' own losses, beside that of the mean of their logits.
    """

    def of_stages(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        each = torch.stack([loss(own, labels) for own in logits])
        return loss(logits.mean(0), labels) + weight * each.mean()

    return of_stages


def build_mix(settings: Settings, num_classes: int, micro_batch_size: int) -> Mix:
    """Returns timm's mixup and cutmix, or what leaves images and labels as they are.

    They draw from NumPy's global random numbers, which `train_epoch` seeds for every step.

    Raises:
        UserError: the images of a forward pass cannot be paired.
    """
    if not (settings.mixup or settings.cutmix):
        return lambda images, labels: (images, labels)
    if micro_batch_size % 2:
        raise UserError(
            f"mixup and cutmix pair the images of a forward pass, but there are {micro_batch_size} of them in each "
            "process; change --batch_size or --grad_accumulation"
        )
    mixup = Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        prob=settings.mixup_prob,
        switch_prob=settings.mixup_switch_prob,
        label_smoothing=settings.label_smoothing,
        num_classes=num_classes,
    )

    def mix(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(images) % 2:  # an image that could not be decoded was left out; another goes with it
            images, labels = images[:-1], labels[:-1]
        return mixup(images, labels)

    return mix
