"""Exact accuracy: every sample once, however many processes share the work."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.utils import eval_mode

if TYPE_CHECKING:
    from accelerate import Accelerator


NOT_A_NUMBER = -1  # in place of a predicted class


@dataclass(frozen=True)
class Predictions:
    """What a model predicted for each sample of a data set, sorted by the sample's place in it.

    Attributes:
        index: Place in the data set, (n,) int64, ascending, each once.
        label: True class, (n,) int64.
        predicted: Class with the highest logit, (n,) int64.
        in_top5: Whether the true class is among the five highest logits, (n,) bool.
    """

    index: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    in_top5: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Whether the prediction is the true class, (n,) bool."""
        return self.predicted == self.label

    def __len__(self) -> int:
        return len(self.index)


def predict(
    model: nn.Module,
    loader: Iterable[Any],
    accelerator: Accelerator,
    size: int,
    *,
    progress: bool = False,
) -> Predictions:
    """Runs `model` over a data set that is divided among the processes, and gathers the predictions.

    Every process has to call it, and each gets the whole result. All use process 0's buffers, the running statistics
    that a checkpoint holds. The model's mode is restored.

    Args:
        model: Images (b, c, h, w) to logits (b, classes); prepared by `accelerator` or not.
        loader: This process's share, in batches of (index (b,), images (b, c, h, w), labels (b,)). Its attribute
            `skipped`, if there is one, counts the rows of the data set it has left out.
        accelerator: Gives the device, the precision and the other processes.
        size: Number of samples in the whole data set.
        progress: Show a progress bar in process 0.

    Returns:
        One entry for each sample.

    Raises:
        RuntimeError: Samples came more than once.
        UserError: There are more or fewer samples than the data set is said to have, or logits are not a number.
    """
    from accelerate.utils import gather_object

    # Without the DDP wrapper, whose forward exchanges buffers: a process without a batch would be waited for.
    model = accelerator.unwrap_model(model)
    _share_buffers(model, accelerator)
    with eval_mode(model):
        own = _predict_share(model, _with_bar(loader, progress and accelerator.is_main_process), accelerator)
    shares = gather_object([(own, int(getattr(loader, "skipped", 0)))])  # arrays of different lengths
    table = np.concatenate([rows for rows, _ in shares])  # (n, 4)
    _check_numbers(table[:, 2])
    table = table[np.argsort(table[:, 0], kind="stable")]
    _check_complete(table[:, 0], size, skipped=sum(skipped for _, skipped in shares))
    return Predictions(table[:, 0], table[:, 1], table[:, 2], table[:, 3].astype(bool))


def top1(predictions: Predictions) -> float:
    """Share of samples whose prediction is right, in percent."""
    return _percent(predictions.correct)


def top5(predictions: Predictions) -> float:
    """Share of samples whose class is among the five most likely, in percent."""
    return _percent(predictions.in_top5)


def _predict_share(model: nn.Module, batches: Iterable[Any], accelerator: Accelerator) -> np.ndarray:
    """Rows of (index, label, predicted, in top five) for this process's samples, (n, 4) int64."""
    device = accelerator.device
    rows = [torch.empty(0, 4, dtype=torch.int64, device=device)]
    for index, images, labels in batches:
        labels = labels.to(device, non_blocking=True)  # (b,)
        with accelerator.autocast():
            logits = model(images.to(device, non_blocking=True))  # (b, classes)
        best = logits.float().topk(min(5, logits.shape[1])).indices  # (b, 5)
        in_top5 = (best == labels[:, None]).any(dim=1)  # (b,)
        predicted = best[:, 0].masked_fill(logits.isnan().any(1), NOT_A_NUMBER)  # (b,)
        rows.append(torch.stack([index.to(device), labels, predicted, in_top5.long()], dim=1))
    return torch.cat(rows).cpu().numpy()


def _share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Gives every process the buffers of process 0; after a training step, each has its own running statistics."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _with_bar(loader: Iterable[Any], show: bool) -> Iterable[Any]:
    if not show:
        return loader
    from tqdm import tqdm

    # A log file gets an occasional line, not one for each redraw.
    return tqdm(loader, desc="evaluate", unit="batch", leave=False, mininterval=0.3 if sys.stderr.isatty() else 20)


def _check_numbers(predicted: np.ndarray) -> None:
    """Raises if logits were not a number: even then some class comes first, and the result would be an accuracy."""
    if bad := int((predicted == NOT_A_NUMBER).sum()):
        raise UserError(
            f"the logits of {bad} of {len(predicted)} samples are not a number (NaN); check the network's weights, or "
            "compute in float32"
        )


def _check_complete(index: np.ndarray, size: int, skipped: int) -> None:
    """Raises unless the sorted `index` has `size` less `skipped` entries, all different."""
    again = np.unique(index[1:][index[1:] == index[:-1]])
    if len(again):
        raise RuntimeError(f"{len(again)} samples were evaluated more than once, the first of them number {again[0]}.")
    if len(index) != size - skipped:
        left_out = f" less {skipped} skipped" if skipped else ""
        raise UserError(
            f"{len(index)} samples were evaluated, but the data set has {size}{left_out}; set data.test_size"
        )


def _percent(hits: np.ndarray) -> float:
    if not len(hits):
        raise ValueError("There are no predictions to take an accuracy of.")
    return 100.0 * float(np.mean(hits))


def accuracy_by_size(predictions: Predictions, object_sizes: np.ndarray) -> dict[int, float]:
    """Accuracy for each object size, smallest first.

    Args:
        predictions: Predictions for a whole data set or a part of it.
        object_sizes: Side of the object in each image of the data set, in whole pixels, (size of the data set,).

    Returns:
        Object size in pixels → share of its samples whose prediction is right, in percent.

    Raises:
        ValueError: `object_sizes` ends before the samples do.
    """
    if len(predictions) and predictions.index[-1] >= len(object_sizes):
        raise ValueError(f"Sample {predictions.index[-1]} has no object size; there are only {len(object_sizes)}.")
    sizes = np.asarray(object_sizes)[predictions.index]  # (n,)
    return {int(size): 100.0 * float(predictions.correct[sizes == size].mean()) for size in np.unique(sizes)}
