"""Tables of benchmarks/photographs.py's records: forms compared on the same images, at equal cost.

    python -m benchmarks.photographs_report

Screening: the validation images of one fold. Each form is shown with the learning rate that gave it the largest area.
The difference from the plain network of the same regime and fold has a 95 % bootstrap interval over images.
Folds: the same forms on the validation images of every fold that was run, with the learning rates of fold 0.
Writes benchmarks/results/photographs.json.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks import photographs_tables as tables
from benchmarks.common.environment import record
from benchmarks.common.intervals import interval_over_runs
from benchmarks.photographs import FACTORS, FLOWERS, FORMS, IMAGENETTE, LARGER, RESULTS, SIZES, factors_of, is_plain
from benchmarks.photographs_cost import plain_cost, relative
from benchmarks.photographs_records import REPORTED, Arrays, read_records
from timm_wsms.evaluation.object_size.curve import area_weights
from timm_wsms.files import atomic_write_text

ONE = SIZES.index(1.0)
CHOSE = 1  # the fold of flowers whose test images, the validation images of fold 0, chose the learning rates
UNSEEN = (0, 2, 3, 4)  # the others
# with every other form
COMPARED = (
    *("plain", "plain at 112", "plain longer", "one size per batch", "one size per batch, averaged", "lite1"),
    *("mean", "mean, stage 1 alone", "mean at 128", "mean at 128, stage 1 alone"),
    "mean at 128, distilled, stage 1 alone",
)
# factors of the image that are compared with the image at its own size, alone or with their logits averaged
AVERAGED = (LARGER, (*LARGER, 1.0), (*LARGER, 1.0, 0.5**0.5), (1.0, 0.5**0.5), (1.0, 0.5))
PARTS = {"area": slice(None), "small": slice(None, ONE + 1), "large": slice(ONE, None), "size 1": slice(ONE, ONE + 1)}


def correct(arrays: Arrays, split: str, stages: Sequence[int]) -> np.ndarray:
    """Whether each image is recognized at each size by the mean logits of some stages, (sizes, images) bool."""
    logits = arrays[f"{split}_logits"][list(stages)].astype(np.float64).mean(0)  # (sizes, images, classes)
    order = np.argsort(arrays[f"{split}_index"])
    return (logits.argmax(-1) == arrays[f"{split}_labels"])[:, order]


def areas(hits: np.ndarray) -> dict[str, np.ndarray]:
    """The share of log size at which each image is recognized, in percent, (images,), for each part of the sizes."""
    return {name: 100 * area_weights(SIZES[part]) @ hits[part] for name, part in PARTS.items()}


def compared(first: Sequence[np.ndarray], second: Sequence[np.ndarray], data: str = "flowers") -> dict[str, Any]:
    """Areas of the second less those of the first, with 95 % intervals over runs and images.

    Args:
        first: For each run, whether each image is recognized at each size, (sizes, images).
        second: Likewise, of the same images.
        data: Whether the runs have images of their own.
    """
    pairs = [(areas(one), areas(other)) for one, other in zip(first, second, strict=True)]
    found = {}
    for name in PARTS:
        gains = [other[name] - one[name] for one, other in pairs]
        ends = pooled(gains, data).mean(), *interval_over_runs(gains, data == "imagenette")
        found[name] = [round(float(value), 2) for value in ends]
    return found


def main_stages(form: str, arrays: Arrays, split: str) -> Sequence[int]:
    """The stages that make up the form's own prediction: of a plain network, the image at its own size."""
    plain = not form.startswith("mean")
    return [0] if plain else range(len(arrays[f"{split}_logits"]))


def ways_to_use(run: dict[str, Any]) -> dict[str, tuple[Sequence[int], float]]:
    """A form as it is meant and in another way at no training: the stages that are averaged, and their arithmetic."""
    form, data = run["form"], run.get("data", "flowers")
    own = main_stages(form, run["arrays"], "test")
    whole = run["multiplications"] / plain_cost(data)
    if len(own) > 1:
        return {form: (own, whole), f"{form}, stage 1 alone": ([0], relative(form, (1.0,), data))}
    if len(run["arrays"]["test_logits"]) == 1:
        return {form: (own, whole)}
    return {form: (own, whole), f"{form}, averaged": ([0, 1], relative(form, FACTORS, data))}


def rows(records: Iterable[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """One row per form and regime: its best learning rate, areas, stages alone, and differences from plain and mean."""
    found = []
    for regime in REPORTED:
        best: dict[str, dict[str, Any]] = {}
        for one in records:
            if one["regime"] == regime and split in one:
                before = best.get(one["form"])
                if before is None or one["validation"]["area"] > before["validation"]["area"]:
                    best[one["form"]] = one
        for form in {**FLOWERS, **IMAGENETTE}:
            if form not in best:
                continue
            one, arrays = best[form], best[form]["arrays"]
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
                "arithmetic": round(one["multiplications"] / plain_cost(one.get("data", "flowers")), 3),
                "top1": (100 * hits.mean(1)).round(2).tolist(),
                **{name: round(float(values.mean()), 2) for name, values in areas(hits).items()},
                "stages_alone": [
                    {name: round(float(v.mean()), 2) for name, v in areas(correct(arrays, split, [stage])).items()}
                    for stage in range(len(arrays[f"{split}_logits"]))
                ],
            }
            for other in ("plain", "mean"):
                if other in best and form != other:
                    stored = best[other]["arrays"]
                    theirs = correct(stored, split, main_stages(other, stored, split))
                    row[f"against_{other}"] = compared([theirs], [hits])
            found.append(row)
    return found


def runs_chosen(
    records: Sequence[dict[str, Any]], regime: str, split: str, folds: Collection[int] = UNSEEN
) -> dict[str, dict[int, dict[str, Any]]]:
    """For each form its runs by fold, with the learning rate of the largest validation area on fold 0.

    Args:
        records: Of one data set.
        regime: Of training.
        split: "validation" or "test".
        folds: Of flowers, whose test images count.
    """
    chosen = {}
    own = [one for one in records if one["regime"] == regime]
    evaluated = [
        one
        for one in own
        if split in one and (split != "test" or one["fold"] in folds or one.get("data") == "imagenette")
    ]
    for form in {**FLOWERS, **IMAGENETTE}:
        first = [one for one in own if one["form"] == form and one["fold"] == 0]
        if first:
            lr = max(first, key=lambda one: one["validation"]["area"])["lr"]
            chosen[form] = {one["fold"]: one for one in evaluated if (one["form"], one["lr"]) == (form, lr)}
    return {form: runs for form, runs in chosen.items() if runs}


def pooled(hits: Iterable[np.ndarray], data: str) -> np.ndarray:
    """Whether images are recognized, (…, images) for each fold: side by side, or the mean if folds share images."""
    each = list(hits)
    return np.mean(each, 0) if data == "imagenette" else np.concatenate(each, -1)


def tested(
    records: Sequence[dict[str, Any]], data: str = "flowers", folds: Collection[int] = UNSEEN
) -> list[dict[str, Any]]:
    """Each form on the test images of all of its folds together; of flowers, those in `folds`.

    On flowers every photograph is tested at most once. On Imagenette all folds have the same test images, and an image
    counts as often as networks recognize it.

    A plain network is shown by itself and with its logits averaged over the image and its half-size copy, without
    training for it; an averaging one by itself and with its stage 1 alone. Differences are from the networks that other
    forms have on the same folds, of the same images, with 95 % intervals over runs and images.
    """
    found = []
    for regime in REPORTED:
        chosen = runs_chosen(records, regime, "test", folds)
        hits, costs = {}, {}
        for runs in chosen.values():
            for name, (stages, arithmetic) in ways_to_use(next(iter(runs.values()))).items():
                hits[name] = {fold: correct(runs[fold]["arrays"], "test", stages) for fold in sorted(runs)}
                costs[name] = round(arithmetic, 3)
        for name, by_fold in hits.items():
            own = pooled(by_fold.values(), data)
            row: dict[str, Any] = {"form": name, "regime": regime, "folds": [*by_fold], "images": own.shape[1]}
            row |= {"arithmetic": costs[name], "top1": (100 * own.mean(1)).round(2).tolist()}
            row |= {part: round(float(values.mean()), 2) for part, values in areas(own).items()}
            for other in COMPARED:
                if other != name and by_fold.keys() <= hits.get(other, {}).keys():
                    same = [hits[other][fold] for fold in by_fold]
                    row[f"against {other}"] = compared(same, [*by_fold.values()], data)
            found.append(row)
    return found


def on_every_photograph(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """`tested` for the forms of flowers that have all five folds: on all of them, and on fold 1 alone."""
    whole = [row for row in tested(records, folds=(*UNSEEN, CHOSE)) if len(row["folds"]) == 5]
    forms = {(row["regime"], row["form"]) for row in whole}
    alone = [row for row in tested(records, folds=(CHOSE,)) if (row["regime"], row["form"]) in forms]
    return {"all folds": whole, "fold 1": alone}


def at_image_sizes(records: Sequence[dict[str, Any]], data: str = "flowers") -> list[dict[str, Any]]:
    """Plain networks on the test images at other sizes of the image, alone and averaged, against the image's own size.

    Of each form those runs whose records have the larger image; their networks were not trained for it.
    """
    found = []
    for regime in REPORTED:
        for form, runs in runs_chosen(records, regime, "test").items():
            factors = factors_of(form)
            if not is_plain(form):
                continue
            all_sizes = {fold: run for fold, run in runs.items() if len(run["arrays"]["test_logits"]) == len(factors)}
            folds = sorted(all_sizes)
            arrays = [all_sizes[fold]["arrays"] for fold in folds]
            own = [correct(each, "test", [0]) for each in arrays]
            for averaged in AVERAGED if folds else ():
                hits = [correct(each, "test", [factors.index(factor) for factor in averaged]) for each in arrays]
                together = pooled(hits, data)
                row: dict[str, Any] = {"form": form, "regime": regime, "folds": folds, "images": together.shape[1]}
                row |= {"factors": averaged, "arithmetic": round(relative(form, averaged, data), 3)}
                row |= {part: round(float(values.mean()), 2) for part, values in areas(together).items()}
                found.append({**row, "against itself": compared(own, hits, data)})
    return found


def jitter_gains(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What scale jitter changes for each form, on the same test images: its areas less those with the crop alone."""
    before, after = (runs_chosen(records, regime, "test") for regime in ("default", "jitter"))
    found: dict[str, Any] = {}
    for form in before.keys() & after.keys():
        folds = sorted(before[form].keys() & after[form].keys())
        stored = ([runs[form][fold]["arrays"] for fold in folds] for runs in (before, after))
        one, other = ([correct(a, "test", main_stages(form, a, "test")) for a in each] for each in stored)
        found[form] = {"folds": folds, "images": sum(hits.shape[1] for hits in one), **compared(one, other)}
    return dict(sorted(found.items()))


def over_folds(records: Sequence[dict[str, Any]], split: str = "validation") -> list[dict[str, Any]]:
    """Each form against the plain network and one size per batch on every fold, its learning rate chosen on fold 0."""
    found = []
    for regime in REPORTED:
        chosen = runs_chosen(records, regime, split)
        for form, runs in chosen.items():
            if len(runs) < 2:
                continue
            folds = sorted(runs)
            row = {"form": form, "regime": regime, "lr": runs[folds[0]]["lr"], "folds": folds}
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
        before, after = one["arrays"], other["arrays"]
        start = areas(correct(before, split, main_stages(one["form"], before, split)))
        end = areas(correct(after, split, main_stages(other["form"], after, split)))
        alone = areas(correct(after, split, [0]))
        for name in PARTS:
            found[name].append(round(float(end[name].mean() - start[name].mean()), 2))
        found["stage 1 alone"].append(round(float(alone["area"].mean() - start["area"].mean()), 2))
        found["stage 1 alone, size 1"].append(round(float(alone["size 1"].mean() - start["size 1"].mean()), 2))
    return found


def main() -> None:
    records = [{"name": name, "arrays": arrays, **found} for name, (found, arrays) in read_records().items()]
    if not records:
        raise SystemExit(f"there are no records in {RESULTS}; benchmarks/run_all.sh lists the runs")
    flowers, imagenette = ([one for one in records if one.get("data", "flowers") == data] for data in FORMS)
    screened = rows([one for one in flowers if one["fold"] == 0], "validation")
    report = {
        **{"what": __doc__.splitlines()[0], "sizes": SIZES, "screening": screened},
        **{"folds": over_folds(flowers), "test_folds": over_folds(flowers, "test"), "test": tested(flowers)},
        **{"every_photograph": on_every_photograph(flowers), "jitter_gains": jitter_gains(flowers)},
        **{"imagenette": rows([one for one in imagenette if one["fold"] == 0], "validation")},
        **{"imagenette_test": tested(imagenette, "imagenette")},
        **{"imagenette_seeds": over_folds(imagenette, "test")},
        "image_sizes": {"flowers": at_image_sizes(flowers), "imagenette": at_image_sizes(imagenette, "imagenette")},
        **record(),
    }
    atomic_write_text(RESULTS.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    for row in [*screened, *report["imagenette"]]:
        against = row.get("against_plain", {}).get("area", "")
        print(f"{row['regime']:8} {row['form']:20} lr {row['lr']:5} {row['multiplications_M']:6} M ", end="")
        print(f"area {row['area']:6} small {row['small']:6} large {row['large']:6} size 1 {row['size 1']:6}  {against}")
    lines = [
        *tables.of_folds(report["folds"]),
        "",
        *tables.of_folds(report["test_folds"]),
        *tables.of_tested(report["test"]),
        "",
        *tables.of_tested(report["imagenette_test"]),
        *tables.of_folds(report["imagenette_seeds"]),
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
