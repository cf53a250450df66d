"""Draws what from_scratch.py found: each form's gain on the plain network, against the size of the objects.

    python -m benchmarks.object_size.plot

From the records of its runs. Means over the seeds that there are, with the 95 % interval of a paired difference over
images (normal approximation; the networks' own chance is not in it).
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.environment import ROOT
from benchmarks.common.size_sweep import check_same_images, recognized
from benchmarks.common.sweep import PLAIN
from benchmarks.object_size.from_scratch import FORMS, GROUPS
from timm_wsms.evaluation.plot_style import COLORS, curve_style, dress_size_axes, make_figure, save_figure

TITLES = {"size 1": "trained at size 1", "jitter": "trained at sizes 0.5 to 2"}
Gain = tuple[np.ndarray, np.ndarray]  # in points at each size, and half the width of its interval


def gains(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[int, Gain]]]:
    """Records of runs → group → form → number of seeds, and the gain on the plain network of the same seed."""
    plain = {(one["group"], one["seed"]): one for one in records if one["form"] == PLAIN}
    differences = defaultdict(list)
    for one in records:
        first = plain.get((one["group"], one["seed"]))
        if first is None or one["form"] == PLAIN:
            continue
        check_same_images(first, one)
        right, other = (recognized(record).correct.astype(float) for record in (one, first))
        differences[one["group"], one["form"]].append(right - other)
    found: dict[str, dict[str, tuple[int, Gain]]] = {group: {} for group in GROUPS}
    for group in GROUPS:
        for form in FORMS:
            if several := differences.get((group, form.name)):
                each = 100 * np.mean(several, axis=0)  # (size, image)
                width = 1.96 * each.std(1, ddof=1) / np.sqrt(each.shape[1])
                found[group][form.name] = (len(several), (each.mean(1), width))
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=ROOT / "benchmarks" / "results" / "unseen_sizes")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "unseen_sizes_cifar10.png")
    options = parser.parse_args(argv)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.records.glob("*.json"))]
    found = gains(records)
    if not any(found.values()):
        raise SystemExit(
            f"there is nothing to compare in {options.records}; run benchmarks/object_size/from_scratch.py"
        )
    sizes = records[0]["sizes"]
    figure = make_figure(width=11.0, height=4.2)
    panels = figure.subplots(1, len(GROUPS), sharey=True)
    for axes, (group, forms) in zip(panels, found.items(), strict=True):
        axes.axhline(0, color=COLORS[-1], linewidth=0.6)
        for name, (seeds, (gain, width)) in forms.items():
            look = curve_style([form.name for form in FORMS].index(name) - 1, len(sizes))
            axes.fill_between(sizes, gain - width, gain + width, color=look["color"], alpha=0.2, linewidth=0)
            axes.plot(sizes, gain, label=f"{name}; {seeds} {'seeds' if seeds > 1 else 'seed'}", **look)
        axes.set_title(TITLES[group], fontsize=10)
        dress_size_axes(axes, sizes)
    panels[0].set_ylabel("points of accuracy more than plain")
    print(save_figure(figure, options.out, "ResNet-20 on CIFAR-10, 8 epochs, 10,000 test images"))


if __name__ == "__main__":
    main()
