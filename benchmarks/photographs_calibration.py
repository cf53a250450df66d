"""Whether one factor per stage, or weights of calibrated probabilities, beats the plain mean of the stages' logits.

    python -m benchmarks.photographs_calibration

On the stored validation logits of every averaging record of benchmarks/photographs.py: both kinds are fitted on one
half of the images, at object size 1 or at all sizes, the better by the likelihood of a quarter kept back is taken, and
accuracy and area are compared with the mean's on the other half; 20 random halves, each both ways.
Writes benchmarks/results/photographs_calibration.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common.environment import record
from benchmarks.photographs import RESULTS, SIZES
from benchmarks.photographs_records import read_records
from timm_wsms.evaluation.object_size.curve import area_weights
from timm_wsms.files import atomic_write_text

HALVES = 20
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


def figures(scores: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Scores (sizes, n, classes) → accuracy at size 1 and area, in percent."""
    top1 = 100 * (scores.argmax(-1) == labels).double().mean(1).numpy()
    return np.array([top1[ONE], area_weights(SIZES) @ top1])


def compare(logits: torch.Tensor, labels: torch.Tensor, sizes: slice) -> dict[str, Any]:
    """Gains in accuracy and area over the mean, on halves that were not fitted."""
    gains, kinds, numbers = [], [], []
    for seed in range(HALVES):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
        half = len(order) // 2
        for fitted, tested in ((order[:half], order[half:]), (order[half:], order[:half])):
            kind, free = better(logits[:, :, fitted], labels[fitted], sizes)
            test = logits[:, :, tested]
            scores = torch.stack([KINDS[kind](test[:, place], free) for place in range(len(SIZES))])
            gains.append(figures(scores, labels[tested]) - figures(test.mean(0), labels[tested]))
            kinds.append(kind)
            numbers.append(free.exp()[0].tolist())
    found = np.array(gains)
    return {
        "kinds": {kind: kinds.count(kind) for kind in KINDS},
        "factors_mean": np.mean(numbers, 0).round(3).tolist(),
        **{
            name: {"gain": round(float(found[:, place].mean()), 3), "std": round(float(found[:, place].std()), 3)}
            for place, name in enumerate(("accuracy", "area"))
        },
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = {}
    for name, (found, arrays) in read_records().items():
        if not found["form"].startswith("mean") or found.get("data", "flowers") != "flowers":
            continue
        logits = torch.from_numpy(arrays["validation_logits"]).double()
        labels = torch.from_numpy(arrays["validation_labels"])
        rows[name] = {
            "images": len(labels),
            "fitted at size 1": compare(logits, labels, slice(ONE, ONE + 1)),
            "fitted at all sizes": compare(logits, labels, slice(None)),
        }
        print(name, json.dumps(rows[name]))
    report = {"what": __doc__.splitlines()[0], "halves": HALVES, "records": rows, **record()}
    atomic_write_text(RESULTS.parent / "photographs_calibration.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
