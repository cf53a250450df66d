"""Accuracy of trained models against the size at which things appear.

    python -m timm_wsms.scale MODEL [MODEL …] --data SOURCE [--output FOLDER] [--stages] [--gallery]

Models and source are what `timm_wsms.evaluate` takes, and at size 1 the figures are its figures. Every test image is
shown with its object made smaller, on a canvas of its own size, and larger. What was computed is kept for the next
time.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from timm_wsms.data import Split, load_splits
from timm_wsms.errors import UserError
from timm_wsms.evaluation import parameters, timm_name
from timm_wsms.evaluation.gallery import plot_gallery
from timm_wsms.evaluation.heat_plots import plot_heat_maps
from timm_wsms.evaluation.load import LOCAL
from timm_wsms.evaluation.options import Options, in_own_terms, parse
from timm_wsms.evaluation.prepare import Prepared, prepare, start
from timm_wsms.evaluation.resize import Border
from timm_wsms.evaluation.result_cache import cached, data_fingerprint, model_hash
from timm_wsms.evaluation.size_curve import (
    FACTORS,
    Comparison,
    SizeCurve,
    SizePredictions,
    check_factors,
    compare,
    predict_sizes,
    size_curve,
)
from timm_wsms.evaluation.size_plots import plot_size_curves, plot_stage_drops
from timm_wsms.evaluation.size_table import drop_table, size_table
from timm_wsms.evaluation.stage_drop import StageDrops, predict_without_stages, stage_drops
from timm_wsms.evaluation.stage_maps import integrated_stages
from timm_wsms.evaluation.trained_sizes import trained_sizes
from timm_wsms.network import WsmsNet
from timm_wsms.training import faults
from timm_wsms.training.whole import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class ScaleOptions(Options):
    """What an evaluation at several object sizes can be told."""

    factors: list[float] = field(default_factory=lambda: list(FACTORS))
    """Sizes of the object, relative to the image's own; 1 is always among them."""
    border: Border = "mean"
    """What surrounds a smaller object: the image's mean color, the image mirrored, or the image blurred."""
    stages: bool = False
    """Also: accuracy lost without each stage, and heat maps a stage."""
    heat_images: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
    """The images, by their place in the split, whose heat maps `--stages` draws."""
    gallery: bool = False
    """Also: images that all models but the last miss and the last gets, beside a random draw (the paper's Fig. 5)."""
    seed: int = 0
    """Of the bootstrap and of the gallery's draw; and of the training run, for the embedded digits."""
    json: str | None = None
    """A file for all figures."""
    output: str | None = None
    """A folder for the pictures: `scale.png`; `stages.png` and `heat_<model>.png`; `gallery.png`."""
    cache: str | None = None
    """A folder to keep results in, instead of `$HF_ASSETS_CACHE`; `off`: neither read nor keep any."""


@dataclass
class Result:
    """What was found about one model."""

    name: str
    weights: str
    parameters: int
    trained: tuple[float, float] | None
    found: SizePredictions
    curve: SizeCurve
    drops: StageDrops | None


Results = dict[str, Result]
Comparisons = dict[tuple[str, str], Comparison]


def main(argv: list[str] | None = None) -> None:
    """Evaluates the models that the command line names, prints a table, and writes what the options ask for.

    Raises:
        UserError: a mistake that the user can mend; the message names the option.
    """
    names, options = parse(argv, ScaleOptions, "scale", "Accuracy of trained models against object size.")
    try:
        scale(names, options)
    except UserError as error:
        raise UserError(in_own_terms(str(error))) from error
    except Exception as error:
        if faults.is_out_of_memory(error):
            raise UserError("out of memory: lower --batch_size, or take --precision bf16") from error
        raise


def scale(names: list[str], options: ScaleOptions) -> dict[str, Any]:
    """Evaluates models on one source at several object sizes.

    Returns:
        What `--json` writes.
    """
    factors = check(names, options)
    accelerator = start(options, names[0])
    if accelerator.num_processes > 1:
        raise UserError("object sizes are evaluated by one process; start it with python -m timm_wsms.scale")
    split = load_splits(options.data_settings(), options.seed)[1]
    models = dict(zip(labels(names), (prepare(name, split, options, accelerator) for name in names), strict=True))
    if options.stages:
        check_stages([*models.values()], split, options)
    results: Results = {}
    for name, (label, model) in zip(names, models.items(), strict=True):
        if model.remark:
            print(f"{name}: {model.remark}")
        results[label] = measure(name, model, split, factors, options, accelerator)
    comparisons = {
        (first, second): compare(results[first].found, results[second].found, options.seed)
        for first, second in itertools.combinations(results, 2)
    }
    figures = as_json(results, comparisons, split, options)
    if options.json:
        write_text(Path(options.json), json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    if options.output:
        draw(results, models, split, options)
    tell(results, comparisons)
    return figures


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
    return check_factors(options.factors)


def check_stages(models: list[Prepared], split: Split, options: ScaleOptions) -> None:
    """Refuses, before anything is computed, networks whose stages cannot be analysed, and images that are not there."""
    several = [model.network for model in models if isinstance(model.network, WsmsNet) and len(model.network.stages)]
    for network in several or [models[0].network]:
        integrated_stages(network)
    if bad := [place for place in options.heat_images if not 0 <= place < len(split)]:
        raise UserError(f"--heat_images {bad[0]} is no image of split {split.name!r}; name 0 to {len(split) - 1}")


def labels(names: list[str]) -> list[str]:
    """Short names for tables and pictures: of a folder its last part, or the one above where that is `model`."""
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
    """Evaluates one model, or reads what was found when it was evaluated before."""
    weights = model_hash(model.network)
    key = {
        "weights": weights,
        "classes": model.data_class,
        "data": data_fingerprint(split),
        "config": model.config,
        "factors": factors,
        "border": options.border,
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
    if options.stages and isinstance(model.network, WsmsNet) and len(model.network.stages):
        predicted = cached("stages", key, without_stages, options.cache)["predicted"]
        drops = stage_drops(predicted, found.label, factors, options.seed)
    path = timm_name(name)
    folder = Path(path.removeprefix(LOCAL)) if path.startswith(LOCAL) else None
    seen = trained_sizes(folder, model.config["crop_pct"]) if folder else None
    return Result(name, weights, parameters(model.network), seen, found, size_curve(found, options.seed), drops)


def as_json(results: Results, comparisons: Comparisons, split: Split, options: ScaleOptions) -> dict[str, Any]:
    """All figures, for JSON."""
    models = [
        {
            "model": label,
            "weights_sha256": one.weights,
            "parameters": one.parameters,
            "trained_sizes": one.trained,
            **dataclasses.asdict(one.curve),
            **({"stages": dataclasses.asdict(one.drops)} if one.drops else {}),
        }
        for label, one in results.items()
    ]
    pairs = [
        {"first": first, "second": second, **dataclasses.asdict(found)}
        for (first, second), found in comparisons.items()
    ]
    images = len(next(iter(results.values())).found.index)
    data = {"data": options.data, "split": split.name, "images": images, "border": options.border}
    return {**data, "precision": options.precision, "seed": options.seed, "models": models, "comparisons": pairs}


def draw(results: Results, models: dict[str, Prepared], split: Split, options: ScaleOptions) -> None:
    """Writes the pictures that the options ask for, and says where."""
    folder, title = Path(options.output or "."), f"{split.name} of {Path(options.data).name}"
    curves, seen = ({label: getattr(one, what) for label, one in results.items()} for what in ("curve", "trained"))
    written = [plot_size_curves(curves, seen, folder / "scale.png", title)]
    drops = {label: one.drops for label, one in results.items() if one.drops}
    if drops:
        written.append(plot_stage_drops(drops, folder / "stages.png", title))
    if options.stages:
        for label, one in models.items():
            images = one.images(split, options.heat_images)
            truth = [split.class_names[split.labels[place]] for place in options.heat_images]
            names = [split.class_names[label] for label in one.data_class]
            path = folder / f"heat_{label.replace('/', '_')}.png"
            written.append(plot_heat_maps(one.network, images, truth, names, one.config, path, label, options.border))
    if options.gallery:
        found = {label: one.found for label, one in results.items()}
        written.append(plot_gallery(found, split, folder / "gallery.png", options.seed))
    print("pictures:", *written)


def tell(results: Results, comparisons: Comparisons) -> None:
    """Prints the tables."""
    curves, seen = ({label: getattr(one, what) for label, one in results.items()} for what in ("curve", "trained"))
    first, *others = results
    print("\n" + size_table(curves, seen, [comparisons[first, other] for other in others]))
    for label, one in results.items():
        if one.drops:
            print(f"\n{label}: points of accuracy without each stage's map\n{drop_table(one.drops)}")


if __name__ == "__main__":
    sys.exit(faults.run(main))
