"""Tables of benchmarks/photographs.py's records: forms compared on the same images, at equal cost.

    python -m benchmarks.photographs_report

Screening: the validation images of one fold. Each form is shown with the learning rate that gave it the largest area.
The difference from the plain network of the same regime and fold has a 95 % bootstrap interval over images.
Folds: the same forms on the validation images of every fold that was run, with the learning rates of fold 0.
Writes benchmarks/results/photographs.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.common.environment import record
from benchmarks.photographs import FLOWERS, IMAGENETTE, REGIMES, RESULTS, SIZES
from timm_wsms.evaluation.object_size.curve import area_weights
from timm_wsms.evaluation.significance import bootstrap_interval
from timm_wsms.files import atomic_write_text

ONE = SIZES.index(1.0)
PARTS = {"area": slice(None), "small": slice(None, ONE + 1), "large": slice(ONE, None), "size 1": slice(ONE, ONE + 1)}


def correct(arrays: Any, split: str, stages: Sequence[int]) -> np.ndarray:
    """Whether each image is recognized at each size by the mean logits of some stages, (sizes, images) bool."""
    logits = arrays[f"{split}_logits"][list(stages)].astype(np.float64).mean(0)  # (sizes, images, classes)
    order = np.argsort(arrays[f"{split}_index"])
    return (logits.argmax(-1) == arrays[f"{split}_labels"])[:, order]


def areas(hits: np.ndarray) -> dict[str, np.ndarray]:
    """The share of log size at which each image is recognized, in percent, (images,), for each part of the sizes."""
    return {name: 100 * area_weights(SIZES[part]) @ hits[part] for name, part in PARTS.items()}


def compared(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Areas of the second less those of the first, with 95 % bootstrap intervals over images."""
    one, other = areas(first), areas(second)
    found = {}
    for name in PARTS:
        difference = other[name] - one[name]
        low, high = bootstrap_interval(difference)
        found[name] = [round(float(value), 2) for value in (difference.mean(), low, high)]
    return found


def main_stages(form: str, arrays: Any, split: str) -> Sequence[int]:
    """The stages that make up the form's own prediction: of a plain network, the image at its own size."""
    plain = not form.startswith("mean")
    return [0] if plain else range(len(arrays[f"{split}_logits"]))


def rows(records: Iterable[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """One row per form and regime: its best learning rate, areas, stages alone, and the difference from plain."""
    found = []
    for regime in REGIMES:
        best: dict[str, dict[str, Any]] = {}
        for one in records:
            if one["regime"] == regime and split in one:
                before = best.get(one["form"])
                if before is None or one["validation"]["area"] > before["validation"]["area"]:
                    best[one["form"]] = one
        for form in {**FLOWERS, **IMAGENETTE}:
            if form not in best:
                continue
            one, arrays = best[form], np.load(RESULTS / f"{best[form]['name']}.npz")
            hits = correct(arrays, split, main_stages(form, arrays, split))
            row = {
                "form": form,
                "regime": regime,
                "lr": one["lr"],
                "area_by_learning_rate": {
                    r["lr"]: r["validation"]["area"]
                    for r in sorted(records, key=lambda r: float(r["lr"]))
                    if (r["form"], r["regime"]) == (form, regime)
                },
                "fold": one["fold"],
                "images": hits.shape[1],
                "multiplications_M": round(one["multiplications"] / 1e6, 1),
                "top1": (100 * hits.mean(1)).round(2).tolist(),
                **{name: round(float(values.mean()), 2) for name, values in areas(hits).items()},
                "stages_alone": [
                    {name: round(float(v.mean()), 2) for name, v in areas(correct(arrays, split, [stage])).items()}
                    for stage in range(len(arrays[f"{split}_logits"]))
                ],
            }
            if "plain" in best and form != "plain":
                plain = np.load(RESULTS / f"{best['plain']['name']}.npz")
                row["against_plain"] = compared(correct(plain, split, [0]), hits)
            found.append(row)
    return found


def over_folds(records: Sequence[dict[str, Any]], split: str = "validation") -> list[dict[str, Any]]:
    """Each form against the plain network and one size per batch on every fold, its learning rate chosen on fold 0."""
    found = []
    for regime in REGIMES:
        chosen: dict[str, dict[int, dict[str, Any]]] = {}
        own = [one for one in records if one["regime"] == regime and split in one]
        for form in FLOWERS:
            first = [one for one in own if one["form"] == form and one["fold"] == 0]
            if first:
                lr = max(first, key=lambda one: one["validation"]["area"])["lr"]
                chosen[form] = {one["fold"]: one for one in own if (one["form"], one["lr"]) == (form, lr)}
        for form, runs in chosen.items():
            if len(runs) < 2:
                continue
            folds = sorted(runs)
            row = {"form": form, "regime": regime, "lr": runs[0]["lr"], "folds": folds}
            row["area"] = [runs[fold][split]["area"] for fold in folds]
            for name in ("plain", "one size per batch"):
                shared = [fold for fold in folds if fold in chosen.get(name, {})]
                if form not in ("plain", name) and len(shared) > 1:
                    row[f"against {name}"] = {
                        "folds": shared,
                        **_differences([chosen[name][fold] for fold in shared], [runs[fold] for fold in shared], split),
                    }
            found.append(row)
    return found


def _differences(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
    """Areas of the second runs less those of the first, fold by fold, and of the second's stage 1 alone."""
    found: dict[str, Any] = {name: [] for name in PARTS} | {"stage 1 alone": [], "stage 1 alone, size 1": []}
    for one, other in zip(first, second, strict=True):
        before, after = (np.load(RESULTS / f"{run['name']}.npz") for run in (one, other))
        start = areas(correct(before, split, main_stages(one["form"], before, split)))
        end = areas(correct(after, split, main_stages(other["form"], after, split)))
        alone = areas(correct(after, split, [0]))
        for name in PARTS:
            found[name].append(round(float(end[name].mean() - start[name].mean()), 2))
        found["stage 1 alone"].append(round(float(alone["area"].mean() - start["area"].mean()), 2))
        found["stage 1 alone, size 1"].append(round(float(alone["size 1"].mean() - start["size 1"].mean()), 2))
    return found


def folds_markdown(found: Iterable[dict[str, Any]]) -> list[str]:
    """The lines of docs/results.md: mean ± standard deviation over folds of the differences in area."""
    lines = []
    for row in found:
        for name in ("plain", "one size per batch"):
            against = row.get(f"against {name}")
            if against:
                parts = ("area", "small", "large", "size 1", "stage 1 alone", "stage 1 alone, size 1")
                alone = row["form"].startswith("mean")
                cells = [mean_and_deviation(against[part]) if alone or part in PARTS else "" for part in parts]
                each = ", ".join(f"{value:+.2f}" for value in against["area"])
                start = [row["regime"], row["form"], name, str(len(against["folds"])), each]
                lines.append(f"| {' | '.join([*start, *cells])} |".replace("-", "−"))
    return lines


def mean_and_deviation(values: Sequence[float]) -> str:
    """As documents write it."""
    return f"{np.mean(values):+.2f} ± {np.std(values, ddof=1):.2f}"


def markdown(found: Iterable[dict[str, Any]]) -> list[str]:
    """The lines of docs/results.md: one per form and regime, and one for each stage of a network by itself."""
    lines = []
    for row in found:
        start = f"{row['regime']} | {row['form']} | {float(row['lr']):g}"
        against = [
            f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" for mean, low, high in row.get("against_plain", {}).values()
        ]
        top1 = [f"{value:.1f}" for value in row["top1"]]
        parts = [f"{row[name]:.2f}" for name in ("area", "small", "large")]
        cells = [start, f"{row['multiplications_M']:.1f} M", *top1, *parts, *(against[:1] or [""])]
        lines.append(f"| {' | '.join(cells)} |".replace("-", "−"))
        if row["form"].startswith("mean"):
            alone = row["stages_alone"][0]
            cells = ["", "its stage 1 alone", "", "", "", "", "", f"{alone['size 1']:.1f}", "", "", ""]
            lines.append(
                f"| {' | '.join([*cells, *(f'{alone[name]:.2f}' for name in PARTS if name != 'size 1'), ''])} |"
            )
    return lines


def spread(row: dict[str, Any]) -> str:
    """The areas with all learning rates, in words."""
    return ", ".join(f"{area:.2f} with {float(lr):g}" for lr, area in row["area_by_learning_rate"].items())


def main() -> None:
    paths = sorted(RESULTS.glob("*.json"))
    if not paths:
        raise SystemExit(f"there are no records in {RESULTS}; run python -m benchmarks.photographs screen")
    records = [{"name": path.stem, **json.loads(path.read_text(encoding="utf-8"))} for path in paths]
    first = [one for one in records if one["fold"] == 0]
    screened = rows([one for one in first if one.get("data", "flowers") == "flowers"], "validation")
    report = {"what": __doc__.splitlines()[0], "sizes": SIZES, "screening": screened}
    flowers = [one for one in records if one.get("data", "flowers") == "flowers"]
    report["folds"] = over_folds(flowers)
    report |= {"imagenette": rows([one for one in first if one.get("data") == "imagenette"], "validation"), **record()}
    atomic_write_text(RESULTS.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    for row in [*screened, *report["imagenette"]]:
        against = row.get("against_plain", {}).get("area", "")
        print(f"{row['regime']:8} {row['form']:20} lr {row['lr']:5} {row['multiplications_M']:6} M ", end="")
        print(f"area {row['area']:6} small {row['small']:6} large {row['large']:6} size 1 {row['size 1']:6}  {against}")
    print("\n".join(folds_markdown(report["folds"])))


if __name__ == "__main__":
    main()
