"""What an evaluation at several object sizes writes and prints: figures for JSON, pictures, tables."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_wsms.data import Split
from timm_wsms.evaluation.model_loading import file_name
from timm_wsms.evaluation.object_size.curve import Comparison, SizeCurve, SizePredictions, comparison_rows
from timm_wsms.evaluation.object_size.gallery import plot_gallery
from timm_wsms.evaluation.object_size.plots import plot_size_curves, plot_stage_drops
from timm_wsms.evaluation.object_size.table import drop_table, size_table
from timm_wsms.evaluation.options import ScaleOptions
from timm_wsms.evaluation.results_table import image_count
from timm_wsms.evaluation.setup import Prepared
from timm_wsms.evaluation.stages.ablation import StageDrops
from timm_wsms.evaluation.stages.cam_plots import plot_heat_maps


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
    images, left_out = counts(results, split)
    data = {"data": options.data, "split": split.name, "images": images, "left_out": left_out}
    told = {name: getattr(options, name) for name in ("border", "precision", "seed")}
    return {**data, **told, "models": models, "comparisons": comparison_rows(comparisons)}


def draw(results: Results, models: dict[str, Prepared], split: Split, options: ScaleOptions) -> None:
    """Writes the pictures that the options ask for, and prints their paths."""
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
            names = [one.class_names[number] for number in one.data_class]
            path = folder / f"heat_{file_name(label)}.png"
            written.append(plot_heat_maps(one.network, images, truth, names, one.config, path, label, options.border))
    if options.gallery:
        found = {label: one.found for label, one in results.items()}
        written.append(plot_gallery(found, split, folder / "gallery.png", options.seed))
    print("pictures:", *written)


def counts(results: Results, split: Split) -> tuple[int, int]:
    """Number of images that were measured, and of those that were left out."""
    images = len(next(iter(results.values())).found.index)
    return images, split.skipped + len(split) - images


def tell(results: Results, comparisons: Comparisons, split: Split) -> None:
    """Prints the tables."""
    curves, seen = ({label: getattr(one, what) for label, one in results.items()} for what in ("curve", "trained"))
    first, *others = results
    print(f"\n{image_count(*counts(results, split))} of split {split.name}")
    print(size_table(curves, seen, [comparisons[first, other] for other in others]))
    for label, one in results.items():
        if one.drops:
            print(f"\n{label}: change of accuracy without each stage, in points\n{drop_table(one.drops)}")
