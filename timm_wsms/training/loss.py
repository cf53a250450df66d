"""The loss, and the mixing of images that it has to know about. Both are timm's and PyTorch's."""

from collections.abc import Callable, Sequence

import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from torch.nn import functional as F

from timm_wsms.errors import UserError
from timm_wsms.network.mean_net import StageOutputs
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


def with_stages(loss: Loss, settings: Settings, factors: Sequence[float]) -> Callable[..., torch.Tensor]:
    """Returns the loss of `StageOutputs`: that of the mean of the logits, plus what the settings add to it.

    `stage_loss` adds the mean of the stages' own losses; `stage_distill` their divergence from the mean of the logits,
    which gets no gradient from it (Wang et al. 2020, Resolution Switchable Networks, Section 3.3); and
    `stage_consistency` the smooth L1 distance of their features from those of the largest image, which get none either
    (Tian et al. 2023, ResFormer, Section 3.2).

    Args:
        loss: the loss of logits (b, classes).
        settings: these three and `stage_distill_temperature` are used.
        factors: size of each stage's image, in the order of the stages.
    """
    teacher = max(range(len(factors)), key=factors.__getitem__)
    temperature = settings.stage_distill_temperature

    def of_stages(outputs: StageOutputs, labels: torch.Tensor) -> torch.Tensor:
        logits, features = outputs
        mean = logits.mean(0)  # (b, classes)
        total = loss(mean, labels)
        if settings.stage_loss:
            total = total + settings.stage_loss * torch.stack([loss(own, labels) for own in logits]).mean()
        if settings.stage_distill:
            target = F.log_softmax(mean.detach() / temperature, -1).expand_as(logits)
            own = F.log_softmax(logits / temperature, -1)
            divergence = F.kl_div(own, target, reduction="none", log_target=True).sum(-1).mean()
            total = total + settings.stage_distill * temperature**2 * divergence
        if settings.stage_consistency and features is not None:
            others = [own for stage, own in enumerate(features) if stage != teacher]
            distances = [F.smooth_l1_loss(own, features[teacher].detach()) for own in others]
            total = total + settings.stage_consistency * torch.stack(distances).mean()
        return total

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
        if len(images) == 1:
            raise UserError(
                "mixup and cutmix pair the images of a micro-batch, of which only one could be decoded; fix the data, "
                "raise --batch_size or leave out mixup and cutmix"
            )
        if len(images) % 2:  # an image that could not be decoded was left out; leave out another with it
            images, labels = images[:-1], labels[:-1]
        return mixup(images, labels)

    return mix
