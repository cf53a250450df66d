"""Small objects on other borders: is the gain of benchmarks/photographs.py one of the mean-color canvas only?

    taskset -c 0 env OMP_NUM_THREADS=1 python -m benchmarks.photographs_borders --folds 2 3 --networks jitter

Networks that were trained on flowers, with timm's default crop or with scale jitter too, or on Imagenette with scale
jitter ("imagenette jitter", where a fold is a seed), see the test images with objects below size 1 that are surrounded
by the image's own reflection, or by a blurred copy of it, instead of its mean color.
Logits stay in benchmarks/results/photographs/<run>_<border>.npz, so that more folds can be added.
Writes benchmarks/results/photographs_borders.json.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import timm
import torch

import timm_wsms  # noqa: F401
from benchmarks.common.environment import record
from benchmarks.common.intervals import interval_over_runs
from benchmarks.photographs import RESULTS, SIZES, Run, logits_at_sizes
from benchmarks.photographs_records import Arrays, read_records
from benchmarks.photographs_report import ONE, correct, pooled
from timm_wsms.evaluation.object_size.curve import area_weights
from timm_wsms.files import atomic_write_text
from timm_wsms.object_scaling import Border

OTHERS = {"one size per batch": "1e-3", "mean": "1e-3", "mean at 128": "1e-3"}
FORMS = {  # with the learning rate that fold 0 chose; "trained again": the first networks were not kept
    "default": {"plain": "2e-3", "plain at 112, trained again": "2e-3", "plain longer": "2e-3", **OTHERS},
    "jitter": {
        **{"plain": "1e-3", "plain at 112": "1e-3", "plain longer": "1e-3"},
        **{**OTHERS, "mean at 128, distilled": "1e-3"},
    },
    "imagenette jitter": dict.fromkeys(("plain", "one size per batch", "mean at 128"), "4e-3"),
}
ROWS = {  # of the tables: a form by all of its stages, or by stage 1 alone, as the plain backbone that it becomes
    "plain": ("plain", False),
    "plain, 112 pixels": ("plain at 112", False),
    "plain, 112 pixels, trained again": ("plain at 112, trained again", False),
    "plain, trained longer": ("plain longer", False),
    "one size per batch": ("one size per batch", False),
    "averaging": ("mean", True),
    "averaging at 128, stage 1 alone": ("mean at 128", False),
    "the same with distillation": ("mean at 128, distilled", False),
}
SMALL = SIZES[: ONE + 1]
WEIGHTS = area_weights(SMALL)
BORDERS: dict[Border, str] = {"mean": "mean color", "reflect": "reflection", "blur": "blurred"}  # in documents


def run_of(kind: str, form: str, fold: int) -> Run:
    """A network of `FORMS`, on its test images."""
    *data, regime = kind.split()
    return Run(form, regime, FORMS[kind][form], fold, True, *data)


def evaluate(run: Run, border: Border) -> None:
    """Leaves the logits of objects below size 1 on a border."""
    path = RESULTS / f"{run.trained}_{border}.npz"
    if border == "mean" or path.exists():
        return
    model: Any = timm.create_model(f"local-dir:{run.folder / 'model'}", pretrained=True).eval()
    model.to(memory_format=torch.channels_last)
    logits, labels, index = logits_at_sizes(model, run, "test", (1.0,), border, SMALL[:-1])
    np.savez_compressed(path, test_logits=logits, test_labels=labels, test_index=index)
    print(path.stem, flush=True)


def small_hits(stored: Arrays, other: Arrays | None, averaged: bool) -> np.ndarray:
    """Whether each test image is recognized at each size up to 1, (sizes, images).

    Args:
        stored: On the mean color.
        other: Below size 1, on another border.
        averaged: By all stages; otherwise by the first.
    """
    stages = range(len(stored["test_logits"])) if averaged else [0]
    hits = correct(stored, "test", stages)[: len(SMALL)]
    return hits if other is None else np.concatenate([correct(other, "test", stages), hits[-1:]])


def read_hits(kind: str, border: Border) -> dict[tuple[str, int], np.ndarray]:
    """(row, fold) → hits, for all folds that were evaluated with all forms."""
    records = read_records()
    found = {}
    for fold in range(5):
        names = {form: run_of(kind, form, fold).trained for form in FORMS[kind]}
        paths = {form: RESULTS / f"{name}_{border}.npz" for form, name in names.items()}
        if border != "mean" and not all(path.exists() for path in paths.values()):
            continue
        for row, (form, averaged) in ROWS.items():
            stored = records.get(names.get(form, ""), ({}, {}))[1]
            if "test_logits" in stored:
                other = None if border == "mean" else dict(np.load(paths[form]))
                found[row, fold] = small_hits(stored, other, averaged)
    return found


def report(kind: str) -> dict[str, Any]:
    """Accuracy of each form at sizes up to 1 on each border, and the differences in area, of the same images."""
    hits = {border: read_hits(kind, border) for border in BORDERS}
    folds = sorted({fold for _, fold in hits["blur"]} & {fold for _, fold in hits["reflect"]})
    if not folds:
        raise SystemExit(f"no fold was evaluated on all borders; run this with --networks {kind!r} --folds 2 3 4")
    data = run_of(kind, "plain", folds[0]).data
    found: dict[str, Any] = {"folds": folds, "sizes": SMALL, "borders": {}}
    for border in BORDERS:
        rows = {}
        own_rows = [row for row, (form, _) in ROWS.items() if form in FORMS[kind]]
        each = {row: [hits[border][row, fold] for fold in folds] for row in own_rows}
        areas = {row: [100 * WEIGHTS @ own for own in of_folds] for row, of_folds in each.items()}
        for form, of_folds in each.items():
            top1 = 100 * pooled(of_folds, data).mean(1)
            area = pooled(areas[form], data).mean()
            rows[form] = {"top1": top1.round(2).tolist(), "area": round(float(area), 2)}
            for other in ("plain", "one size per batch"):
                if other != form:
                    gains = [one - base for one, base in zip(areas[form], areas[other], strict=True)]
                    ends = pooled(gains, data).mean(), *interval_over_runs(gains, data == "imagenette")
                    rows[form][f"against {other}"] = [round(float(end), 2) for end in ends]
        found["borders"][border] = rows
    found["images"] = pooled((hits["mean"]["plain", fold] for fold in folds), data).shape[1]
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The rows of docs/results.md."""
    rows = []
    borders: dict[Border, Any] = found["borders"]
    for border, forms in borders.items():
        for form, row in forms.items():
            cells = [BORDERS[border], form, *(f"{value:.1f}" for value in row["top1"]), f"{row['area']:.2f}"]
            for other in ("plain", "one size per batch"):
                gain = row.get(f"against {other}")
                cells.append("{:+.2f} [{:+.2f}, {:+.2f}]".format(*gain) if gain else "")
            rows.append(f"| {' | '.join(cells)} |".replace("-", "−"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, nargs="*", default=[], help="to be evaluated now")
    parser.add_argument("--networks", choices=FORMS, default="default", help="to be evaluated, by their training")
    torch.set_num_threads(1)
    args = parser.parse_args()
    for fold in args.folds:
        for form in FORMS[args.networks]:
            for border in BORDERS:
                evaluate(run_of(args.networks, form, fold), border)
    found = {kind: report(kind) for kind in FORMS}
    atomic_write_text(
        RESULTS.parent / "photographs_borders.json",
        json.dumps({"what": __doc__.splitlines()[0], "trained_with": found, **record()}, indent=1) + "\n",
    )
    for one in found.values():
        print("\n".join(lines(one)))


if __name__ == "__main__":
    main()
