"""Draws accuracy on photographs against object size, for the README, and against MACs, for docs/cascade.md.

    python -m benchmarks.photographs_plot

From photographs.json and photographs_cascade.json, the test images of all folds.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common.environment import ROOT
from benchmarks.photographs import RESULTS
from timm_wsms.evaluation.plot_style import curve_style, dress_axes, dress_size_axes, make_figure, save_figure

PANELS = {"default": "trained with timm's crop", "jitter": "trained with timm's crop and scale jitter"}
LINES = {
    "mean": "averaging, 112 pixels (recommended)",
    "mean at 128, stage 1 alone": "stage 1 alone, 128 pixels, a plain model",
    "plain": "plain",
    "one size per batch": "plain, one size per batch",
}


COSTS = {"size 1": "top-1 accuracy in %, objects as taken", "area": "area over all object sizes"}


def draw_sizes() -> None:
    report = json.loads(RESULTS.with_suffix(".json").read_text(encoding="utf-8"))
    rows = {(row["regime"], row["form"]): row for row in report["test"]}
    figure = make_figure(width=10.0, height=3.8)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (regime, title) in zip(panels, PANELS.items(), strict=True):
        images = rows[regime, "plain"]["images"]
        for number, (form, label) in enumerate(LINES.items()):
            row = rows.get((regime, form))
            if row and row["images"] == images:  # the same photographs
                axes.plot(report["sizes"], row["top1"], label=label, **curve_style(number, len(row["top1"])))
        axes.set_title(f"{title}; {images:,} test images", fontsize=10)
        dress_size_axes(axes, report["sizes"])
    panels[1].get_legend().remove()  # both panels have the same curves
    panels[0].set_ylabel("top-1 accuracy in %")
    path = ROOT / "docs" / "headline_photographs.png"
    print(save_figure(figure, path, "EfficientNet-Lite0 from ImageNet weights, fine-tuned on photographs of flowers"))


def cost_lines(found: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Name → (MACs, accuracy) of each network that the figure joins by a line, the cheapest first.

    Args:
        found: What photographs_cascade.json says of one regime and one kind of accuracy.
    """
    rivals = found["rivals"]
    trained = [rows[0] for form, rows in rivals.items() if form == "plain" or form.startswith("plain at")]
    lines = {
        "cascade of averaging": found["cascade"],
        "its stage 1 alone": rivals["stage 1 alone"],
        "plain, trained at each size": trained,
        "plain, one size per batch": rivals["one size per batch"],
    }
    return {name: sorted((row["cost"], row["accuracy"]) for row in rows) for name, rows in lines.items()}


def draw_costs() -> None:
    """A row of panels for each way to train."""
    found = json.loads((RESULTS.parent / "photographs_cascade.json").read_text(encoding="utf-8"))["flowers"]
    figure = make_figure(width=10.0, height=7.4)
    rows = figure.subplots(len(PANELS), len(COSTS), sharex=True)
    for panels, (regime, trained) in zip(rows, reversed(PANELS.items()), strict=True):
        for axes, (what, label) in zip(panels, COSTS.items(), strict=True):
            for number, (name, points) in enumerate(cost_lines(found[regime]["mean"][what]).items()):
                axes.plot(*zip(*points, strict=True), label=name, **curve_style(number, len(points)))
            dress_axes(axes, "MACs, relative to the plain network at 128 pixels" if regime == "default" else "")
            axes.set_title(f"{label}\n{trained}", fontsize=10)
            if axes is not rows[0][0]:
                axes.get_legend().remove()
    images = found["jitter"]["mean"]["size 1"]["images"]
    title = f"EfficientNet-Lite0 on photographs of flowers; {images:,} test images"
    print(save_figure(figure, ROOT / "docs" / "cascade_photographs.png", title))


def main() -> None:
    draw_sizes()
    draw_costs()


if __name__ == "__main__":
    main()
