"""Whether one factor per stage, or weights of calibrated probabilities, beats the plain mean of the stages' logits.

    python -m benchmarks.photographs_calibration

For every averaging network of benchmarks/photographs.py that was tested: both kinds are fitted on its validation
images, at object size 1 or at all sizes, and the one that is likelier on a quarter kept back is taken. On the test
images, accuracy at size 1 and area are compared with those of the mean, of stage 1 alone, and of the one of these two
that is ahead on the validation images, with 95 % intervals over runs and images.
Writes benchmarks/results/photographs_calibration.json; docs/results.md has the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common.environment import record
from benchmarks.common.intervals import interval_over_runs
from benchmarks.photographs import FORMS, RESULTS, SIZES
from benchmarks.photographs_records import REPORTED, read_records
from benchmarks.photographs_report import correct, pooled, runs_chosen
from benchmarks.photographs_tables import interval, line_of
from timm_wsms.evaluation.object_size.curve import area_weights
from timm_wsms.files import atomic_write_text

ONE = SIZES.index(1.0)


def factors(logits: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Logits (stages, n, classes) → log-probabilities of the mean of factor times logits."""
    return (logits * free[0].exp()[:, None, None]).mean(0).log_softmax(-1)


def weighted(logits: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """… → logarithms of the weighted mean of the probabilities, each stage at its own temperature."""
    each = (logits * free[0].exp()[:, None, None]).log_softmax(-1)
    return (each + free[1].log_softmax(0)[:, None, None]).logsumexp(0)


KINDS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"factors": factors, "weighted": weighted}


def fit(kind: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The 2 × stages numbers of a kind at which the labels (n,) are likeliest, by L-BFGS."""
    free = torch.zeros(2, len(logits), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.nll_loss(KINDS[kind](logits, free), labels)
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return free.detach()


def flat(logits: torch.Tensor, labels: torch.Tensor, sizes: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (stages, sizes, n, classes) of some sizes → (stages, sizes · n, classes), and as many labels."""
    taken = logits[:, sizes]
    return taken.flatten(1, 2), labels.repeat(taken.shape[1])


def better(logits: torch.Tensor, labels: torch.Tensor, sizes: slice) -> tuple[str, torch.Tensor]:
    """The kind that is likelier on every fourth image when fitted on the others, then fitted on all."""
    kept = torch.arange(len(labels)) % 4 == 0
    losses = {}
    for kind in KINDS:
        free = fit(kind, *flat(logits[:, :, ~kept], labels[~kept], sizes))
        rest, theirs = flat(logits[:, :, kept], labels[kept], sizes)
        losses[kind] = float(F.nll_loss(KINDS[kind](rest, free), theirs))
    kind = min(losses, key=lambda name: losses[name])
    return kind, fit(kind, *flat(logits, labels, sizes))


WEIGHTS = {"size 1": np.eye(len(SIZES))[ONE], "area": np.asarray(area_weights(SIZES))}
FITTED = {"size 1": slice(ONE, ONE + 1), "all sizes": slice(None)}
RIVALS = ("the mean", "stage 1 alone", "the better of both")


def of_run(run: dict[str, Any], fitted: slice) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """For each figure in `WEIGHTS`, the kind that was taken and its gain over each rival, in points, (test images,).

    Args:
        run: A record of averaged logits, with its arrays.
        fitted: At these sizes.
    """
    logits, labels = (
        {split: torch.from_numpy(run["arrays"][f"{split}_{what}"]) for split in ("validation", "test")}
        for what in ("logits", "labels")
    )
    kind, free = better(logits["validation"].double(), labels["validation"], fitted)
    test = logits["test"].double()
    calibrated = torch.stack([KINDS[kind](test[:, place], free) for place in range(len(SIZES))])
    order = np.argsort(run["arrays"]["test_index"])
    ours = (calibrated.argmax(-1) == labels["test"]).numpy()[:, order]
    stages: dict[str, Sequence[int]] = {"the mean": range(len(test)), "stage 1 alone": [0]}
    hits = {
        split: {rival: correct(run["arrays"], split, of) for rival, of in stages.items()}
        for split in ("validation", "test")
    }
    found = {}
    for name, weights in WEIGHTS.items():
        ahead = max(hits["validation"], key=lambda rival: (weights @ hits["validation"][rival]).mean())
        theirs = {**hits["test"], "the better of both": hits["test"][ahead]}
        found[name] = kind, {rival: 100 * (weights @ ours - weights @ theirs[rival]) for rival in RIVALS}
    return found


def of_form(runs: dict[int, dict[str, Any]], data: str) -> dict[str, Any]:
    """What calibration gains for a form, over its runs by fold."""
    found: dict[str, Any] = {"folds": sorted(runs)}
    for name, fitted in FITTED.items():
        each = [of_run(runs[fold], fitted) for fold in sorted(runs)]
        row: dict[str, Any] = {"kinds": [next(iter(one.values()))[0] for one in each]}
        for figure in WEIGHTS:
            row[figure] = {}
            for rival in RIVALS:
                gains = [one[figure][1][rival] for one in each]
                ends = pooled(gains, data).mean(), *interval_over_runs(gains, data == "imagenette")
                row[figure][rival] = [round(float(end), 2) for end in ends]
        found[f"fitted at {name}"] = row
    return found


def lines(report: dict[str, Any]) -> list[str]:
    """The rows of docs/results.md: gains in area when fitted at all sizes, and at size 1 when fitted there."""
    texts = []
    for data, regimes in report["data"].items():
        for regime, forms in regimes.items():
            for form, found in forms.items():
                cells = [data, regime, form, str(len(found["folds"]))]
                for fitted, figure in (("size 1", "size 1"), ("all sizes", "area")):
                    cells += [interval(found[f"fitted at {fitted}"][figure][rival]) for rival in RIVALS]
                texts.append(line_of(cells))
    return texts


def main() -> None:
    torch.set_num_threads(1)
    records = [{"name": name, "arrays": arrays, **found} for name, (found, arrays) in read_records().items()]
    report: dict[str, Any] = {"what": __doc__.splitlines()[0], "data": {}}
    for data in FORMS:
        own = [one for one in records if one.get("data", "flowers") == data]
        report["data"][data] = {}
        for regime in REPORTED:
            forms = {form: runs for form, runs in runs_chosen(own, regime, "test").items() if form.startswith("mean")}
            found = {form: of_form(runs, data) for form, runs in forms.items()}
            if found:
                report["data"][data][regime] = found
    atomic_write_text(
        RESULTS.parent / "photographs_calibration.json", json.dumps({**report, **record()}, indent=1) + "\n"
    )
    print("\n".join(lines(report)))


if __name__ == "__main__":
    main()
