"""What a cascade saves on a data set: its accuracy, MACs and images/s, for `--cascade`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from timm_wsms.data import DataSettings, Split, load_validation, make_loader, sampling
from timm_wsms.data.progress import progress
from timm_wsms.errors import UserError
from timm_wsms.evaluation.class_matching import match_classes
from timm_wsms.evaluation.model_loading import load_model
from timm_wsms.evaluation.options import AccuracyOptions
from timm_wsms.evaluation.results_table import aligned
from timm_wsms.evaluation.setup import Prepared
from timm_wsms.network.cascade import Cascade
from timm_wsms.network.exits import STEPS, average_exits, check_count, confidences, leave_at
from timm_wsms.network.mean_net import WsmsMeanNet

if TYPE_CHECKING:
    from accelerate import Accelerator


def is_cascade(network: Any) -> bool:
    """Whether a cascade can be made of a network."""
    return isinstance(network, WsmsMeanNet) and len(network.factors()) > 1


def divide(split: Split, settings: DataSettings, seed: int) -> tuple[Split, Split, str]:
    """The images to evaluate on, others to calibrate on, and which these are.

    A validation split is used for calibration. If there is none, or if it is the one evaluated, half of the images of
    each class are used, and the others are evaluated.
    """
    held_out = load_validation(settings, split, seed)
    if held_out is not None:
        return split, held_out, f"calibrated on {len(held_out)} images of {held_out.name}"
    rest, half = sampling.holdout(split.labels, 0.5, seed)
    evaluated, held_out = replace(split.take(rest), name=f"{split.name}, half"), split.take(half)
    return (
        evaluated,
        held_out,
        f"there is no other split to calibrate on: calibrated on {len(half)} images of {split.name}, all figures are "
        f"of the other {len(rest)}",
    )


def check(names: Sequence[str], options: AccuracyOptions, held_out: Split, accelerator: Accelerator) -> None:
    """Check, before anything is evaluated, that a cascade can be calibrated and measured.

    Raises:
        UserError: There are several processes, too few images to calibrate on, or no network of averaged logits.
    """
    if accelerator.num_processes > 1:
        raise UserError("--cascade measures speed and runs in one process; leave out the launcher")
    check_count(len(held_out), options.cascade or 0.0)
    if not any(is_cascade(load_model(name, **options.model_kwargs)) for name in names):
        raise UserError("--cascade needs a network of averaged logits, such as wsmean_<name>; name one, or omit it")


def measure_cascade(
    one: Prepared,
    held_out: Split,
    settings: DataSettings,
    accelerator: Accelerator,
    max_drop: float,
    sweep: bool = False,
) -> dict[str, Any]:
    """Calibrates a cascade and runs it, and the plain backbone, on the images to evaluate.

    Args:
        one: A network of averaged logits and the images to evaluate; all in this process.
        held_out: The images to calibrate on.
        settings: For both.
        accelerator: Gives the device and the precision.
        max_drop: In points of accuracy, compared with all stages.
        sweep: Also measure accuracy and cost at other thresholds.

    Returns:
        Figures for JSON. `plain` is stage 1 alone. Images/s are those of the forward pass alone, measured in turn on
        batches of the same images. Costs are multiplications relative to the plain backbone's.

    Raises:
        UserError: There are too few images to calibrate on.
    """
    network = one.network.eval()
    cascade = Cascade(network)
    loader = make_loader(
        held_out, settings, one.config, batch_size=one.loader.batch_size, train=False, device=accelerator.device
    )
    classes = own_classes(match_classes(network, held_out.class_names, network.num_classes).model, network)
    batches = ((images, classes[labels.cpu()]) for _, images, labels in progress(loader, "calibrate"))
    with accelerator.autocast():
        found = cascade.calibrate(batches, max_drop)
    forms = {"plain": network.backbone, "cascade": cascade}
    right, seconds, seen = dict.fromkeys(forms, 0), dict.fromkeys(forms, 0.0), 0
    for images, labels in _batches(one, accelerator.device):
        for name, model in forms.items():
            with torch.no_grad(), accelerator.autocast():
                if not seen:
                    model(images)  # the first call allocates
                    cascade.reset()
                _wait(accelerator.device)
                start = time.perf_counter()
                logits = model(images)
                _wait(accelerator.device)
            seconds[name] += time.perf_counter() - start
            right[name] += int((logits.argmax(1) == labels).sum())
        seen += len(images)
    result = {
        "max_drop": max_drop,
        "confidence": found.confidence,
        "temperatures": found.temperatures,
        "calibration_images": found.images,
        "calibration_drop": found.drop,
        "batch_size": one.loader.batch_size,
        "exit_costs": cascade.costs(one.config["input_size"]),
        "cost": cascade.spending.mean(),
        "exits": cascade.spending.counts(),
        **{f"{name}_top1": 100 * count / seen for name, count in right.items()},
        **{f"{name}_images_per_second": seen / spent for name, spent in seconds.items()},
    }
    return {**result, "sweep": _sweep(cascade, one, accelerator)} if sweep else result


def own_classes(ordered: Any, network: Any) -> torch.Tensor:
    """For each class of the data, its number among the network's logits, int64 (classes,), on the CPU."""
    return getattr(ordered, "order", torch.arange(network.num_classes)).cpu()


def _batches(one: Prepared, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images, and labels as the network numbers them."""
    classes = own_classes(one.ordered, one.network)
    for _, images, labels in progress(one.loader, "cascade"):
        yield images.to(device), classes[labels.cpu()].to(device)


def _sweep(cascade: Cascade, one: Prepared, accelerator: Accelerator) -> list[list[float]]:
    """(cost, top-1 in percent) from the small image alone to all stages, thresholds at quantiles of the confidences."""
    each, labels = [], []
    for images, given in _batches(one, accelerator.device):
        with torch.no_grad(), accelerator.autocast():
            each.append(cascade.model.stage_logits(images).float())
        labels.append(given)
    logits = average_exits(torch.cat(each, 1), cascade.order)
    return sweep_thresholds(logits, torch.cat(labels), cascade.temperatures, cascade.costs(one.config["input_size"]))


def sweep_thresholds(
    logits: torch.Tensor, labels: torch.Tensor, temperatures: list[float], costs: list[float]
) -> list[list[float]]:
    """Cost and accuracy as the threshold varies, which is the same at every exit.

    Args:
        logits: Logits of every exit (E, n, classes).
        labels: int64 (n,).
        temperatures: Temperatures of every exit but the last.
        costs: Cost of every exit.

    Returns:
        (mean cost, top-1 in percent), from threshold 0 to above 1; the others are quantiles of the confidences.
    """
    confidence = confidences(logits[:-1], temperatures)
    ranked = confidence.flatten().sort().values
    levels = [0.0, *(float(ranked[len(ranked) * step // STEPS]) for step in range(1, STEPS)), 2.0]
    right = logits.argmax(-1) == labels
    points = []
    for level in levels:
        leaves = leave_at(confidence, [level] * len(confidence))
        cost = torch.tensor(costs, dtype=torch.float64)[leaves.cpu()].mean()
        points.append([float(cost), 100 * float(right.gather(0, leaves[None]).double().mean())])
    return points


def cascade_table(result: dict[str, Any], top1: float) -> str:
    """The figures of `measure_cascade` next to the accuracy of all stages, as text."""
    cells = [["", "accuracy %", "MACs", "images/s"]]
    for name, what in (("plain", "plain backbone (stage 1)"), ("cascade", "cascade")):
        cost = 1.0 if name == "plain" else result["cost"]
        speed = result[f"{name}_images_per_second"]
        cells.append([what, f"{result[f'{name}_top1']:.2f}", f"× {cost:.3f}", f"{speed:,.1f}"])
    cells.append(["all stages", f"{top1:.2f}", f"× {result['exit_costs'][-1]:.3f}", ""])
    exits = ", ".join(f"{count} after {number}" for number, count in enumerate(result["exits"], start=1))
    return "\n".join(
        [
            aligned(cells),
            f"confidence {', '.join(f'{level:.3f}' for level in result['confidence'])}; images by number of stages: "
            f"{exits}; batches of {result['batch_size']}",
        ]
    )


def curves_and_points(
    results: list[dict[str, Any]],
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, tuple[float, float]]]:
    """For the plot, for all models: million multiplications per image and top-1 in percent.

    Args:
        results: Figures of each model, including those of its cascade and of its images of other sizes if it has any.

    Returns:
        Curves of the cascades and of the models at several image sizes, and a point for each of the others.
    """
    curves, points = {}, {}
    for one in results:
        sizes = [one, *one.get("image_sizes", [])]
        if found := one.get("cascade"):
            plain = one["multiplications"] / found["exit_costs"][-1] / 1e6
            curves[f"{one['model']}, cascade"] = [(cost * plain, accuracy) for cost, accuracy in found["sweep"]]
        elif len(sizes) > 1:
            each = sorted((size["multiplications"] / 1e6, size["top1"]) for size in sizes)
            curves[f"{one['model']}, image size"] = each
        else:
            points[one["model"]] = (one["multiplications"] / 1e6, one["top1"])
    return curves, points


def _wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
