"""What a cascade refuses: other models, invalid thresholds, batches without labels."""

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import torch

from timm_wsms.errors import UserError
from timm_wsms.network.mean_net import WsmsMeanNet


def check_model(model: Any) -> None:
    """Raise a UserError unless a cascade can be made from a model."""
    if not isinstance(model, WsmsMeanNet):
        raise UserError(
            f"a cascade takes a network with fusion='mean', such as wsmean_<name>, not wrapped; not "
            f"{type(model).__name__}"
        )
    if model.training:
        raise UserError("a cascade is for inference only; call model.eval() first")
    if len(model.factors()) == 1:
        raise UserError("a cascade needs two stages or more; give the network a pyramid such as [1, 0.5]")
    if not model.num_classes or model.global_pool == "":
        raise UserError("a cascade needs a classifier; call model.reset_classifier(num_classes, 'avg')")
    if model.num_classes == 1:
        raise UserError("a cascade needs two classes or more: the softmax of a single logit is always 1")


def check_stages(model: WsmsMeanNet, parts: Iterable[Any]) -> None:
    """Raise a UserError if a model's stages are not those that a cascade was made from."""
    if {id(part) for part in parts} != {id(part) for part in (model.backbone, *model.stages.values())}:
        raise UserError("the model has another backbone than when the cascade was made; make a new cascade")


def one_per_exit(name: str, given: Any, count: int, least: float) -> list[float]:
    """One number for every exit but the last.

    Raises:
        UserError: If there are too few or too many, or one is below the minimum.
    """
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * count
    numbers = [as_number(value) for value in values]
    if not all(least <= number < math.inf for number in numbers) or len(numbers) != count:
        what = "numbers of 0 or more" if least == 0 else "positive numbers"
        raise UserError(
            f"{name} must be one number, or {count}, one for every exit but the last, {what}; not {str(given)[:60]}"
        )
    return numbers


def as_number(value: Any) -> float:
    """One real number, Python's or NumPy's; NaN for anything else."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def images_and_labels(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch holds, the labels as int64.

    Raises:
        UserError: If it holds something else.
    """
    pair = (batch.images, batch.labels) if hasattr(batch, "images") and hasattr(batch, "labels") else batch
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(x, torch.Tensor) for x in pair)):
        raise UserError(f"a batch must be (images, labels), two tensors; not {type(batch).__name__}")
    images, labels = pair
    if labels.is_floating_point() or labels.is_complex():
        raise UserError(f"labels must be class numbers, integers of shape (B,); not {labels.dtype}")
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise UserError(
            f"a batch must be images (B, C, H, W) and class numbers (B,); not {(*images.shape,)} and {(*labels.shape,)}"
        )
    return images, labels.long()
