"""Accuracy of trained models against the size at which objects appear.

    python -m timm_wsms.object_size MODEL [MODEL …] --data SOURCE [--output FOLDER] [--stages] [--gallery]

Models and source are as for `timm_wsms.evaluate`, and at size 1 the figures are the same. Every test image is shown
with its object made smaller, on a canvas of the image's size, and larger. Results are kept for the next time.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from timm_wsms import cli_errors
from timm_wsms.data import Split, load_split, summary
from timm_wsms.data.decode import BadImageError
from timm_wsms.errors import UserError
from timm_wsms.evaluation import leaderboard, parameters
from timm_wsms.evaluation.model_loading import LOCAL, timm_name
from timm_wsms.evaluation.object_size.curve import SizePredictions, check_factors, compare, predict_sizes, size_curve
from timm_wsms.evaluation.object_size.report import Result, Results, as_json, draw, tell
from timm_wsms.evaluation.object_size.trained_range import trained_sizes
from timm_wsms.evaluation.options import REMEDIES, ScaleOptions, parse
from timm_wsms.evaluation.result_cache import cached, data_fingerprint, model_hash, settings_hash
from timm_wsms.evaluation.setup import Prepared, prepare, start
from timm_wsms.evaluation.stages.ablation import predict_without_stages, stage_drops
from timm_wsms.evaluation.stages.cam import several_stages
from timm_wsms.files import atomic_write_text
from timm_wsms.network.base import MultiStageNet

if TYPE_CHECKING:
    from accelerate import Accelerator


def main(argv: list[str] | None = None) -> None:
    """Evaluates the models that the command line names, prints a table, and writes what the options ask for.

    Raises:
        UserError: a mistake that the user can fix; the message names the option.
    """
    names, options = parse(argv, ScaleOptions, "object_size", "Accuracy of trained models against object size.")
    evaluate_sizes(names, options)


def evaluate_sizes(names: list[str], options: ScaleOptions) -> dict[str, Any]:
    """Evaluates models on one source at several object sizes.

    Returns:
        What `--json` writes.
    """
    results, models, split = measure_all(names, options)
    comparisons = {
        (first, second): compare(results[first].found, results[second].found, options.seed)
        for first, second in itertools.combinations(results, 2)
    }
    figures = as_json(results, comparisons, split, options)
    if options.json:
        atomic_write_text(Path(options.json), json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    if options.append:
        shared = {key: value for key, value in figures.items() if key not in ("data", "models", "comparisons")}
        for model in figures["models"]:
            leaderboard.append(options.append, leaderboard.entry("object_size", options.data, {**model, **shared}))
    if options.output:
        draw(results, models, split, options)
    tell(results, comparisons, split)
    return figures


def measure_all(names: list[str], options: ScaleOptions) -> tuple[Results, dict[str, Prepared], Split]:
    """Evaluates models on one source at several object sizes.

    Returns:
        What was found about each model, and the models, by their labels; the images.
    """
    factors = check(names, options)
    accelerator = start(options)
    if accelerator.num_processes > 1:
        raise UserError("object sizes are evaluated by one process; start it with python -m timm_wsms.object_size")
    split = load_split(options.data_settings(), limit=options.limit, seed=options.seed)
    print("\n".join(summary.lines(summary.describe({"test": split}, options.data_settings()))))
    models = dict(zip(labels(names), (prepare(name, split, options, accelerator) for name in names), strict=True))
    if options.stages:
        check_stages([*models.values()], split, options)
    results: Results = {}
    for name, (label, model) in zip(names, models.items(), strict=True):
        if model.remark:
            print(f"{name}: {model.remark}")
        results[label] = measure(name, model, split, factors, options, accelerator)
    return results, models, split


def check(names: list[str], options: ScaleOptions) -> tuple[float, ...]:
    """Refuses what can be refused before anything is loaded; returns the sizes."""
    for name in names:
        timm_name(name)
    if len(set(names)) < len(names):
        raise UserError("a model is named twice; name each once")
    if (options.stages or options.gallery) and not options.output:
        raise UserError("--stages and --gallery draw pictures; name a folder for them with --output")
    if options.gallery and len(names) < 2:
        raise UserError("--gallery compares models; name the backbones first and the network to be shown last")
    if options.seed < 0:
        raise UserError(f"--seed is {options.seed}; give a number that is not negative")
    return check_factors(options.factors)


def check_stages(models: list[Prepared], split: Split, options: ScaleOptions) -> None:
    """Refuses, before anything is computed, networks without stages, and images that are not there."""
    networks = [model.network for model in models]
    if not any(isinstance(network, MultiStageNet) and len(network.stages) for network in networks):
        several_stages(networks[0])  # says what would have some
    if not options.heat_images:
        raise UserError("--heat_images is empty; name an image, or leave it out")
    for place in options.heat_images:
        if not 0 <= place < len(split):
            raise UserError(f"--heat_images {place} is not in split {split.name!r}; name 0 to {len(split) - 1}")
        try:
            split.image(place)
        except BadImageError as error:
            raise UserError(f"{error} Name others with --heat_images.") from error


def labels(names: list[str]) -> list[str]:
    """Short names for tables and pictures: for a folder its last part, or the one above if that is `model`."""
    paths = [Path(name.removeprefix(LOCAL)) for name in names]
    short = [path.parent.name if path.name == "model" and path.parent.name else path.name for path in paths]
    return short if len(set(short)) == len(names) else names


def measure(
    name: str,
    model: Prepared,
    split: Split,
    factors: tuple[float, ...],
    options: ScaleOptions,
    accelerator: Accelerator,
) -> Result:
    """Evaluates one model, or reads the results of an earlier evaluation."""
    weights = model_hash(model.network)
    key = {
        "weights": weights,
        "settings": settings_hash(model.network),
        "classes": model.data_class,
        "data": data_fingerprint(split),
        "config": model.config,
        "factors": factors,
        "border": options.border,
        "on_bad_image": options.on_bad_image,
        "precision": options.precision,
        "device": accelerator.device.type,
    }

    def at_all_sizes() -> dict[str, np.ndarray]:
        found = predict_sizes(model.ordered, model.loader, accelerator, factors, options.border, progress=True)
        return {"index": found.index, "label": found.label, "predicted": found.predicted}

    def without_stages() -> dict[str, np.ndarray]:
        predicted = predict_without_stages(model.network, model.loader, accelerator, factors, options.border)
        return {"predicted": np.array(model.data_class)[predicted]}

    found = SizePredictions(factors, **cached("scale", key, at_all_sizes, options.cache))
    drops = None
    if options.stages and isinstance(model.network, MultiStageNet) and len(model.network.stages):
        predicted = cached("stages", key, without_stages, options.cache)["predicted"]
        drops = stage_drops(predicted, found.label, factors, options.seed)
    path = timm_name(name)
    folder = Path(path.removeprefix(LOCAL)) if path.startswith(LOCAL) else None
    seen = trained_sizes(folder, model.config["crop_pct"], model.config["input_size"][1]) if folder else None
    return Result(name, weights, parameters(model.network), seen, found, size_curve(found, options.seed), drops)


if __name__ == "__main__":
    sys.exit(cli_errors.run(main, REMEDIES))
