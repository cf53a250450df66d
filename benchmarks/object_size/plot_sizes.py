"""Draws the picture of docs/results.md: accuracy against object size, of plain, deeper and multi-stage networks.

    python -m benchmarks.object_size.plot_sizes

From unseen_sizes.json: means over seeds, bands of one standard deviation.
"""

import numpy as np

from benchmarks.common.environment import ROOT
from benchmarks.object_size.report_tables import load
from timm_wsms.evaluation.plot_style import curve_style, dress_size_axes, make_figure, save_figure

TITLES = {"size 1": "trained at size 1", "jitter": "trained at sizes 0.5 to 2"}
LINES = {
    "mean 1 .5 each, own statistics": "averaging (recommended)",
    "plain": "plain",
    "deeper": "deeper, ResNet-26",
    "concat": "concatenating (the paper's)",
}


def main() -> None:
    report = load("unseen_sizes")
    figure = make_figure(width=10.0, height=3.8)
    panels = figure.subplots(1, len(TITLES), sharey=True)
    for axes, (group, title) in zip(panels, TITLES.items(), strict=True):
        for number, (form, label) in enumerate(LINES.items()):
            row = report[form, group]
            mean, std = (np.array([at[key] for at in row["top1"]]) for key in ("mean", "std"))
            look = curve_style(number, len(row["sizes"]))
            axes.fill_between(row["sizes"], mean - std, mean + std, color=look["color"], alpha=0.2, linewidth=0)
            axes.plot(row["sizes"], mean, label=f"{label}; {row['n']} seeds", **look)
        axes.set_title(title, fontsize=10)
        dress_size_axes(axes, row["sizes"])
    panels[0].get_legend().remove()  # both panels have the same curves, and there is more room in the second
    panels[0].set_ylabel("top-1 accuracy in %")
    path = ROOT / "docs" / "sizes_cifar10.png"
    print(save_figure(figure, path, "ResNet-20 on CIFAR-10, 8 epochs, 10,000 test images"))


if __name__ == "__main__":
    main()
