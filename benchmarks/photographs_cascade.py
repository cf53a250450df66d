"""Accuracy against arithmetic of the small image first, from the stored logits of benchmarks/photographs.py.

    python -m benchmarks.photographs_cascade

For every averaging record: temperatures and a threshold are chosen on one half of the images, such that accuracy there
(or the area) falls by at most 0, 0.3, 1 or 2 points against all stages; accuracy and mean arithmetic are those of the
other half; both ways, averaged. Thresholds are chosen on images at size 1, and on those at all sizes. Where a record
has test images, thresholds are chosen on all validation images instead. The curves are of thresholds that are swept.

Arithmetic is relative to plain EfficientNet-lite0 at 128 pixels. Rivals: plain networks and those trained at one size
per batch, at each factor of the image's size that their record has, with the arithmetic of the resized image; the next
larger backbone. The bound of `Cascade.calibrate` is not asked for here, since half of the validation images are too few
for it: what a threshold costs on images that did not choose it is what is reported.
Writes benchmarks/results/photographs_cascade.json; run it again when there are more records.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch

import timm_wsms  # noqa: F401
from benchmarks.common.environment import record
from benchmarks.photographs import ALL_FACTORS, FLOWERS, RESULTS, SIZES
from benchmarks.photographs_records import Arrays, read_records
from timm_wsms.evaluation.cascade import sweep_thresholds
from timm_wsms.evaluation.cost import multiplications
from timm_wsms.evaluation.object_size.curve import area_weights
from timm_wsms.files import atomic_write_text
from timm_wsms.network.exits import average_exits, confidences, fit_temperature, leave_at

BACKBONES = {"tf_efficientnet_lite0", "tf_efficientnet_lite1"}
DROPS = (0.0, 0.3, 1.0, 2.0)  # points
LEVELS = (0.0, *(step / 200 for step in range(1, 200)), 2.0)  # thresholds
ONE = SIZES.index(1.0)
WEIGHTS = torch.from_numpy(area_weights(SIZES))
AT = {"size 1": torch.eye(len(SIZES), dtype=torch.float64)[ONE], "area": WEIGHTS}  # of what accuracy is taken
_counted: dict[tuple[str, int], int] = {}


def count(backbone: str, side: int) -> int:
    """Multiplications of a backbone for five classes on a square image."""
    if (backbone, side) not in _counted:
        model = timm.create_model(backbone, num_classes=5).eval()
        _counted[backbone, side] = multiplications(model, (3, side, side))
    return _counted[backbone, side]


def backbone_of(form: str) -> str:
    return FLOWERS[form].model.removeprefix("wsms_")


def pyramid_of(settings: Sequence[str]) -> list[float]:
    """Factors of the stages in their order, 1 first, from what the training script was told."""
    factors = json.loads(settings[list(settings).index("--model_kwargs.pyramid") + 1])
    return [1.0, *(float(factor) for factor in factors if factor != 1)]


def exits_of(found: dict[str, Any], logits: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """Stage logits (S, sizes, n, classes) → those of the exits, and the relative arithmetic of each exit."""
    factors, side = pyramid_of(found["settings"]), FLOWERS[found["form"]].side
    order = sorted(range(len(factors)), key=lambda place: factors[place])
    plain = count("tf_efficientnet_lite0", 128)
    each = [count(backbone_of(found["form"]), int(side * factors[place])) / plain for place in order]
    return average_exits(logits.flatten(1, 2), order).unflatten(1, logits.shape[1:3]), np.cumsum(each).tolist()


def outcome(
    exits: torch.Tensor, labels: torch.Tensor, costs: list[float], heats: list[float], level: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Accuracy in percent and mean arithmetic at each object size, (sizes,) each, at a threshold."""
    confidence = confidences(exits[:-1].flatten(1, 2), heats).unflatten(1, exits.shape[1:3])
    leaves = torch.stack([leave_at(confidence[:, size], [level] * len(heats)) for size in range(len(SIZES))])
    right = exits.argmax(-1) == labels  # (E, sizes, n)
    return 100 * right.gather(0, leaves[None])[0].double().mean(1), torch.tensor(costs)[leaves].double().mean(1)


def choose(
    exits: torch.Tensor, labels: torch.Tensor, costs: list[float], weights: torch.Tensor, drop: float
) -> tuple[list[float], float]:
    """Temperatures of all exits but the last, and the smallest threshold down to which no accuracy falls by more."""
    sizes = (weights > 0).nonzero()[:, 0]
    several = labels.repeat(len(sizes))
    heats = [fit_temperature(one[sizes].flatten(0, 1), several) for one in exits[:-1]]
    whole = (weights * 100 * (exits[-1].argmax(-1) == labels).double().mean(1)).sum()
    chosen = LEVELS[-1]
    for level in reversed(LEVELS):
        accuracy, _ = outcome(exits, labels, costs, heats, level)
        if whole - (weights * accuracy).sum() > drop + 1e-9:
            break
        chosen = level
    return heats, chosen


def of_record(found: dict[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Everything about one averaging record."""
    split = "test" if "test_logits" in arrays else "validation"
    read = {
        name: (torch.from_numpy(arrays[f"{name}_logits"]).double(), torch.from_numpy(arrays[f"{name}_labels"]))
        for name in {split, "validation"}
    }
    exits, costs = exits_of(found, read[split][0])
    labels = read[split][1]
    if split == "test":
        pairs = [((exits_of(found, read["validation"][0])[0], read["validation"][1]), (exits, labels))]
    else:
        # alternate images, since they come class by class
        halves = [(exits[:, :, start::2], labels[start::2]) for start in (0, 1)]
        pairs = [(halves[0], halves[1]), (halves[1], halves[0])]
    result: dict[str, Any] = {"split": split, "images": len(labels), "exit_costs": [round(cost, 4) for cost in costs]}
    for what, weights in AT.items():
        alone = [float((weights * 100 * (one.argmax(-1) == labels).double().mean(1)).sum()) for one in exits]
        rows = []
        for drop in DROPS:
            ways = []
            for (fitted, theirs), (tested, ours) in pairs:
                heats, level = choose(fitted, theirs, costs, weights, drop)
                accuracy, cost = outcome(tested, ours, costs, heats, level)
                ways.append([level, float((weights * accuracy).sum()), float((weights * cost).sum())])
            level, accuracy, cost = np.mean(ways, 0).round(4).tolist()
            rows.append({"allowed": drop, "thresholds": [way[0] for way in ways], "accuracy": accuracy, "cost": cost})
        sizes = (weights > 0).nonzero()[:, 0]
        several, theirs = exits[:, sizes].flatten(1, 2), labels.repeat(len(sizes))
        heats = [fit_temperature(one, theirs) for one in several[:-1]]
        result[what] = {
            "exits_alone": np.round(alone, 2).tolist(),
            "chosen": rows,
            "temperatures": np.round(heats, 3).tolist(),
        }
        if what == "size 1":
            result[what]["swept"] = np.round(sweep_thresholds(several, theirs, heats, costs), 4).tolist()
        else:
            points = [outcome(exits, labels, costs, heats, level) for level in (*LEVELS[::10], 2.0)]
            result[what]["swept"] = [
                [round(float((weights * cost).sum()), 4), round(float((weights * accuracy).sum()), 4)]
                for accuracy, cost in points
            ]
    return result


def of_rival(found: dict[str, Any], arrays: Arrays) -> dict[str, Any]:
    """A network that always spends as much, at each factor of the image's size: (arithmetic, accuracy)."""
    split = "test" if "test_logits" in arrays else "validation"
    logits, labels = arrays[f"{split}_logits"].astype(np.float64), arrays[f"{split}_labels"]
    factors = ALL_FACTORS[: len(logits)]
    side, plain = FLOWERS[found["form"]].side, count("tf_efficientnet_lite0", 128)
    costs = [count(backbone_of(found["form"]), round(side * factor)) / plain for factor in factors]
    top1 = 100 * (logits.argmax(-1) == labels).mean(2)  # (factors, sizes)
    points = {what: sorted(zip(costs, top1 @ weights.numpy(), strict=True)) for what, weights in AT.items()}
    return {"split": split, "images": len(labels), **{w: np.round(p, 4).tolist() for w, p in points.items()}}


def main() -> None:
    torch.set_num_threads(1)
    cascades, rivals = {}, {}
    for name, (found, arrays) in read_records().items():
        if found.get("data", "flowers") != "flowers":
            continue
        kept = {key: found[key] for key in ("form", "regime", "lr", "fold")}
        if found["form"].startswith("mean"):
            cascades[name] = {**kept, **of_record(found, arrays)}
            print(name, cascades[name]["exit_costs"])
            for what in AT:
                alone = cascades[name][what]["exits_alone"]
                print(f"  {what}: exits alone {alone}")
                for row in cascades[name][what]["chosen"]:
                    print(f"    allowed {row['allowed']}: {row['accuracy']:.2f} at × {row['cost']:.3f}")
        elif not found["form"].startswith("concat"):
            rivals[name] = {**kept, **of_rival(found, arrays)}
            print(name, {what: rivals[name][what] for what in AT})
    report = {
        **{
            "what": __doc__.splitlines()[0],
            "sizes": SIZES,
            "plain_multiplications": count("tf_efficientnet_lite0", 128),
        },
        **{"cascades": cascades, "rivals": rivals},
        **record(),
    }
    atomic_write_text(RESULTS.parent / "photographs_cascade.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
