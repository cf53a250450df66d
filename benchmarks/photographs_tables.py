"""Tables of docs/results.md and README.md from benchmarks/results/photographs.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Rows = Iterable[dict[str, Any]]


def by_form(found: Rows) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows by regime and form."""
    return {(row["regime"], row["form"]): row for row in found}


def line_of(cells: Iterable[str]) -> str:
    """A line of a table, with the minus sign that documents use."""
    return f"| {' | '.join(cells)} |".replace("-", "−")


def of_folds(found: Rows) -> list[str]:
    """The lines of docs/results.md: mean ± standard deviation over folds of the differences in area."""
    lines = []
    for row in found:
        for name in ("plain", "one size per batch"):
            against = row.get(f"against {name}")
            if against:
                parts = ("area", "small", "large", "size 1", "stage 1 alone", "stage 1 alone, size 1")
                alone = row["form"].startswith("mean")
                cells = [mean_and_deviation(against[part]) if alone or "alone" not in part else "" for part in parts]
                each = ", ".join(f"{value:+.2f}" for value in against["area"])
                start = [row["regime"], row["form"], name, str(len(against["folds"])), each]
                lines.append(line_of([*start, *cells]))
    return lines


def of_tested(found: Rows) -> list[str]:
    """The lines of docs/results.md: every photograph tested once."""
    lines = []
    for row in found:
        top1 = [f"{value:.1f}" for value in row["top1"]]
        parts = [f"{row[name]:.2f}" for name in ("area", "small", "large")]
        cells = [row["regime"], row["form"], str(row["images"]), *top1, *parts]
        for other in ("plain", "one size per batch"):
            against = row.get(f"against {other}")
            cells.append(interval(against["area"]) if against else "")
        lines.append(line_of(cells))
    return lines


def of_every_photograph(found: Rows, alone: Rows, whole: Rows) -> list[str]:
    """The lines of docs/results.md: gains on four folds, on the one whose images chose the learning rates, on all.

    Args:
        found: Rows of the test images of four folds.
        alone: Of the fold that chose.
        whole: Of all five.
    """
    rows = [by_form(each) for each in (found, alone, whole)]
    lines = []
    for key, row in rows[2].items():
        cells = [*key, str(row["images"]), *(f"{row[name]:.2f}" for name in ("area", "small", "large", "size 1"))]
        for other in ("plain", "one size per batch"):
            if f"against {other}" in row:
                four, one, five = (each[key][f"against {other}"]["area"] for each in rows)
                cells += [interval(four), f"{one[0]:+.2f}", interval(five)]
            else:
                cells += [""] * 3
        lines.append(line_of(cells))
    return lines


HEADLINE = {  # form, or way to use one, in results → in the README
    "plain": "plain",
    "plain at 112": "plain, 112 pixels",
    "one size per batch": "plain, one size per batch",
    "mean": "**averaging, recommended**",
    "mean at 128, stage 1 alone": "**stage 1 of averaging at 128 pixels**",
    "mean at 128, distilled, stage 1 alone": "the same with distillation",
}
TRAINED = {"default": "timm's crop", "jitter": "crop and scale jitter"}
IMAGENETTE_TRAINED = {
    "default": "timm's crop",
    "jitter": "crop and scale jitter",
    "20 epochs": "timm's crop, 20 epochs",
}
HEADLINE_SIZES = (1, 3, 5)  # half size, as taken, twice


def of_headline(found: Rows) -> list[str]:
    """The lines of the README's table: forms that were tested on all images that the plain network was tested on."""
    rows = by_form(found)
    lines = []
    for regime, trained in reversed(TRAINED.items()):
        for form, name in HEADLINE.items():
            row = rows.get((regime, form))
            if row and row["images"] == rows[regime, "plain"]["images"]:
                cells = [f"× {row['arithmetic']:.2f}", f"{row['images']:,}"]
                cells += [*(f"{row['top1'][size]:.1f}" for size in HEADLINE_SIZES), f"{row['area']:.2f}"]
                against = row.get("against plain")
                cells.append(interval(against["area"]) if against else "")
                lines.append(line_of([trained, name, *cells]))
    return lines


CHOICES = {  # form, or way to use one, in results → in docs/choosing.md
    "mean": "averaging, `wsmean_<backbone>`",
    "mean, stage 1 alone": "its stage 1, a plain timm model",
    "mean, distilled, stage 1 alone": "its stage 1, trained with distillation",
    "one size per batch": "plain, one size per batch",
}


EQUAL_COST = {  # form, or way to use one, in results → in docs/choosing.md
    "plain": "plain",
    "plain longer": "plain, trained longer",
    "one size per batch": "plain, one size per batch",
    "mean at 128, stage 1 alone": "**stage 1 of averaging**",
    "mean at 128, distilled, stage 1 alone": "the same with distillation",
    "mean, distilled, stage 1 alone": "the same with distillation, 112 pixels",
    "mean at 128": "averaging itself, for comparison",
}


def of_equal_cost(found: Rows, regimes: dict[str, str]) -> list[str]:
    """The lines of docs/choosing.md: networks that cost as much as the plain one where they are used, beside stage 1.

    Args:
        found: Rows of test images.
        regimes: Of training: name in results → in the document.
    """
    rows = by_form(found)
    lines = []
    for regime, trained in regimes.items():
        for form, name in EQUAL_COST.items() if (regime, "mean at 128") in rows else ():
            if row := rows.get((regime, form)):
                cells = [trained, name, f"× {row['arithmetic']:.2f}", f"{row['images']:,}"]
                cells += [f"{row[part]:.2f}" for part in ("size 1", "area", "small", "large")]
                for other in ("plain", "one size per batch"):
                    against = row.get(f"against {other}")
                    cells.append(interval(against["area"]) if against else "")
                cells.append(interval(row["against plain"]["size 1"]) if "against plain" in row else "")
                lines.append(line_of(cells))
    return lines


EQUAL_TRAINING = {  # form, or way to use one, in results → in docs/choosing.md
    "mean at 128, stage 1 alone": "stage 1 of averaging, 128 pixels",
    "mean at 128, distilled, stage 1 alone": "the same with distillation",
    "mean at 128": "averaging, 128 pixels",
    "mean": "averaging, 112 pixels",
}


def of_equal_training(found: Rows, regimes: dict[str, str]) -> list[str]:
    """The lines of docs/choosing.md: averaging less a plain network that was trained longer, on the same test images.

    Args:
        found: Rows of test images.
        regimes: Of training: name in results → in the document.
    """
    rows = by_form(found)
    lines = []
    for regime, trained in regimes.items():
        longer = rows.get((regime, "plain longer"))
        for form, name in EQUAL_TRAINING.items() if longer else ():
            if behind := longer.get(f"against {form}"):
                used, whole = (
                    rows[regime, each]["arithmetic"] for each in (form, form.removesuffix(", stage 1 alone"))
                )
                cells = [trained, name, f"× {whole:.2f}", f"× {used:.2f}"]
                for part in ("area", "small", "large", "size 1"):
                    mean, low, high = behind[part]
                    cells.append(interval((-mean, -high, -low)))
                lines.append(line_of(cells))
    return lines


def of_choices(found: Rows) -> list[str]:
    """The lines of docs/choosing.md: differences from the plain network of the same training, and their intervals."""
    rows = by_form(found)
    lines = []
    for regime, trained in reversed(TRAINED.items()):
        for form, name in CHOICES.items():
            if rows.get((regime, form), {"images": 0})["images"] != rows[regime, "plain"]["images"]:
                continue
            gains = rows[regime, form]["against plain"]
            cells = [f"× {rows[regime, form]['arithmetic']:.2f}"]
            cells += [interval(gains[part]) for part in ("area", "small", "large", "size 1")]
            lines.append(line_of([trained, name, *cells]))
    return lines


def of_image_sizes(found: dict[str, Rows]) -> list[str]:
    """The lines of docs/results.md: plain networks with the image at other sizes, which they were not trained for.

    Args:
        found: Data → rows.
    """
    lines = []
    for data, rows in found.items():
        for row in rows:
            sizes = " + ".join(f"{factor:.2g}" if factor < 1 else f"{factor:.3g}" for factor in row["factors"])
            cells = [row["regime"], row["form"], f"{row['images']:,}", str(len(row["folds"])), sizes]
            cells += [f"× {row['arithmetic']:.2f}", f"{row['area']:.2f}"]
            cells += [interval(row["against itself"][part]) for part in ("area", "small", "large", "size 1")]
            lines.append(f"| {data.capitalize()} {line_of(cells)}")
    return lines


TRIED = {  # form in results → in docs/choosing.md
    "plain longer": "plain, 5 epochs instead of 4",
    "plain, larger image": "plain, 136 pixels",
    "lite1": "the next larger backbone, EfficientNet-Lite1",
    "one size per batch": "one size per batch: 96, 128 or 160 pixels",
    "mean, one size per batch": "averaging, trained at one size per batch: 84, 112 or 140 pixels",
    "mean, distilled": "averaging, its mean distilled into each stage (`stage_distill: 1`, temperature 2)",
    "mean, consistent": "averaging, features of the stages pulled together (`stage_consistency: 1`)",
    "mean of three": "averaging three sizes, `pyramid=[1, 0.71, 0.5]`, 96 pixels",
    "mean of larger": "averaging with a larger image, `pyramid=[1.41, 1, 0.71]`, 64 pixels",
    "concat": "concatenating with residual connections, the paper's form, 112 pixels",
}


def of_tried(found: Rows) -> list[str]:
    """The lines of docs/choosing.md: what was trained once beside the plain network and the recommended form."""
    rows = {row["form"]: row for row in found if row["regime"] == "default"}
    lines = []
    for form, name in TRIED.items():
        if form in rows:
            row = rows[form]
            cells = [f"× {row['arithmetic']:.2f}", f"{row['size 1']:.1f}"]
            cells += [f"{row[part]:.2f}" for part in ("area", "small", "large")]
            cells += [interval(row[f"against_{other}"]["area"]) for other in ("plain", "mean")]
            lines.append(f"| {name} {line_of(cells)}")  # a name may have a hyphen
    return lines


def interval(gain: Sequence[float]) -> str:
    """A mean and the ends of its interval, as documents write it."""
    mean, low, high = gain
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def mean_and_deviation(values: Sequence[float]) -> str:
    """As documents write it."""
    return f"{np.mean(values):+.2f} ± {np.std(values, ddof=1):.2f}"


def of_screening(found: Rows) -> list[str]:
    """The lines of docs/results.md: one per form and regime, and one for each stage of a network by itself."""
    lines = []
    for row in found:
        start = f"{row['regime']} | {row['form']} | {float(row['lr']):g}"
        against = [interval(gain) for gain in row.get("against_plain", {}).values()]
        top1 = [f"{value:.1f}" for value in row["top1"]]
        parts = [f"{row[name]:.2f}" for name in ("area", "small", "large")]
        cells = [start, f"{row['multiplications_M']:.1f} M", *top1, *parts, *(against[:1] or [""])]
        lines.append(line_of(cells))
        if row["form"].startswith("mean"):
            alone = row["stages_alone"][0]
            cells = ["", "its stage 1 alone", "", "", "", "", "", f"{alone['size 1']:.1f}", "", "", ""]
            lines.append(
                f"| {' | '.join([*cells, *(f'{alone[name]:.2f}' for name in ('area', 'small', 'large')), ''])} |"
            )
    return lines


def spread(row: dict[str, Any]) -> str:
    """The areas with all learning rates, in words."""
    return ", ".join(f"{area:.2f} with {float(lr):g}" for lr, area in row["area_by_learning_rate"].items())


# What was aimed at: way to use a network, regime of training → least gain in area, and on small objects if that counts.
# The opponent is the better of the plain network and one size per batch, in area; after 20 epochs as after 5.
AVERAGING, STAGE1 = "mean", "mean at 128, stage 1 alone"
TARGETS: dict[tuple[str, str], tuple[float, float | None]] = {
    (AVERAGING, "default"): (3.0, 1.5),
    (AVERAGING, "jitter"): (1.5, 0.7),
    (STAGE1, "default"): (1.5, None),
    (STAGE1, "jitter"): (0.7, None),
}
NO_LOSS = {"flowers": -1.0, "imagenette": -0.7}  # the least lower end of the interval at size 1


def of_targets(flowers: Iterable[dict[str, Any]], imagenette: Iterable[dict[str, Any]]) -> list[str]:
    """The lines of docs/results.md: what was aimed at on test images, and whether it was reached."""
    lines = []
    for data, found in {"flowers": flowers, "imagenette": imagenette}.items():
        rows = by_form(found)
        for (form, of_regime), (area, small) in TARGETS.items():
            for regime in (of_regime, "20 epochs") if (of_regime, data) == ("default", "imagenette") else (of_regime,):
                if (regime, form) not in rows:
                    continue
                rivals = [rows[regime, name] for name in ("plain", "one size per batch") if (regime, name) in rows]
                rival = max(rivals, key=lambda row: row["area"])["form"]
                gains = rows[regime, form][f"against {rival}"]
                missed = [
                    name
                    for name, value, least in (
                        ("area", gains["area"][0], area),
                        ("small", gains["small"][0], small),
                        ("size 1", gains["size 1"][1], NO_LOSS[data]),
                    )
                    if least is not None and value < least
                ]
                name = "averaging, 112 pixels" if form == AVERAGING else "stage 1 alone, 128 pixels"
                trained = {"default": "crop", "jitter": "crop and scale jitter"}.get(regime, "crop, 20 epochs")
                cells = [data.capitalize(), trained, name, rival, f"{area:+.1f}", interval(gains["area"])]
                cells += ["" if small is None else f"{small:+.1f}", interval(gains["small"]), interval(gains["size 1"])]
                averaged = rows[regime, form]["against one size per batch, averaged"]["area"]
                missed += ["averaged"] if averaged[0] <= 0 else []
                cells += [interval(averaged), "no: " + ", ".join(missed) if missed else "yes"]
                lines.append(line_of(cells))
    return lines
