"""The table of accuracy against object size: one line per size, two columns per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from timm_wsms.evaluation.object_size.curve import Comparison, SizeCurve
from timm_wsms.evaluation.object_size.trained_range import was_trained
from timm_wsms.evaluation.results_table import aligned
from timm_wsms.evaluation.stages.ablation import StageDrops


def size_table(
    curves: Mapping[str, SizeCurve],
    trained: Mapping[str, tuple[float, float] | None],
    comparisons: Sequence[Comparison] = (),
) -> str:
    """The table for a terminal.

    Args:
        curves: Model's name → its curve, all at the same sizes.
        trained: Model's name → smallest and largest size in training; None where that is not known.
        comparisons: Comparisons of the first model with the second, the third …
    """
    factors = next(iter(curves.values())).factors
    tests = [f"p (1, {number})" for number in range(2, 2 + len(comparisons))]
    header = ["size", *(word for name in curves for word in (name, "as at 1")), *tests]
    lines = [header]
    for place, factor in enumerate(factors):
        cells = [f"{factor:.2f}"]
        for name, curve in curves.items():
            mark = "*" if was_trained(factor, trained[name]) else " "
            cells += [
                _with_interval(curve.top1[place], curve.interval[place]) + mark,
                f"{curve.consistency[place]:.1f}",
            ]
        lines.append(cells + [f"{test.p[place]:.2g}" for test in comparisons])
    area, worst = ["area"], ["worst"]
    for curve in curves.values():
        mean = "–" if curve.mean_consistency is None else f"{curve.mean_consistency:.1f}"
        area += [_with_interval(curve.area, curve.area_interval) + " ", mean]
        worst += [f"{curve.worst:.1f} at {curve.worst_factor:.2f} ", ""]
    blank = [""] * len(comparisons)
    notes = [
        "top-1 in % [95 % bootstrap interval]; as at 1: share of images with the same answer as at size 1, in %",
        "area: mean accuracy over log size; * a size seen in training",
    ]
    if comparisons:
        notes.append("p: McNemar's exact test, two-sided, at one size; not corrected for their number")
    for number, test in enumerate(comparisons, start=2):
        difference = _with_interval(test.area_difference, test.area_interval, "+.1f")
        notes.append(f"area of model {number} minus that of model 1: {difference} points")
    return aligned([*lines, area + blank, worst + blank]) + "\n" + "\n".join(notes)


def drop_table(drops: StageDrops) -> str:
    """Points of accuracy lost without each stage, one line per size."""
    header = ["size", "top-1 %", *(f"without stage {stage + 1}" for stage in range(len(drops.drop)))]
    lines = [
        [f"{factor:.2f}", f"{drops.top1[place]:.1f}"]
        + [
            _with_interval(-lost[place], (-ends[place][1], -ends[place][0]), "+.1f")
            for lost, ends in zip(drops.drop, drops.interval, strict=True)
        ]
        for place, factor in enumerate(drops.factors)
    ]
    return aligned([header, *lines])


def _with_interval(value: float, interval: tuple[float, float], form: str = ".1f") -> str:
    value, low, high = (round(one, 1) + 0.0 for one in (value, *interval))  # no -0.0
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
