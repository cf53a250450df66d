"""Draws the README's picture: accuracy against object size on photographs.

    python -m benchmarks.photographs_plot

From photographs.json, the test images of all folds.
"""

from __future__ import annotations

import json

from benchmarks.common.environment import ROOT
from benchmarks.photographs import RESULTS
from timm_wsms.evaluation.plot_style import curve_style, dress_size_axes, make_figure, save_figure

PANELS = {"default": "trained with timm's crop", "jitter": "trained with timm's crop and scale jitter"}
LINES = {
    "mean": "averaging (recommended)",
    "plain": "plain",
    "one size per batch": "plain, one size per batch",
    "mean, stage 1 alone": "averaging's stage 1 alone, a plain model",
}


def main() -> None:
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


if __name__ == "__main__":
    main()
