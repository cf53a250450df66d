"""The cascade's and the calibration's reports of stored logits, against loops over images."""

import json

import numpy as np
import pytest
import torch

from benchmarks import photographs_calibration, photographs_cascade
from benchmarks.photographs import RESULTS, SIZES

NAME = "mean_default_lr1e-3_fold0"
ONE = SIZES.index(1.0)


@pytest.fixture(scope="module")
def stored():
    arrays = np.load(RESULTS / f"{NAME}.npz")
    found = json.loads((RESULTS / f"{NAME}.json").read_text())
    return found, torch.from_numpy(arrays["validation_logits"]).double(), torch.from_numpy(arrays["validation_labels"])


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(photographs_cascade, "count", lambda backbone, side: side**2)


def test_exits_and_their_costs(stored, counted):
    found, logits, _ = stored
    exits, costs = photographs_cascade.exits_of(found, logits)
    assert torch.equal(exits[0], logits[1]) and torch.equal(exits[1], logits.mean(0))  # the small image is stage 2
    assert costs == pytest.approx([56**2 / 128**2, (56**2 + 112**2) / 128**2])


def test_an_outcome_is_that_of_a_loop(stored, counted):
    found, logits, labels = stored
    exits, costs = photographs_cascade.exits_of(found, logits)
    accuracy, cost = photographs_cascade.outcome(exits, labels, costs, [1.3], 0.8)
    right, spent = 0, 0.0
    for place in range(len(labels)):
        small = exits[0, ONE, place]
        sure = float((small / 1.3).softmax(0).max()) >= 0.8
        right += int((small if sure else exits[1, ONE, place]).argmax() == labels[place])
        spent += costs[0] if sure else costs[1]
    assert accuracy[ONE].item() == pytest.approx(100 * right / len(labels))
    assert cost[ONE].item() == pytest.approx(spent / len(labels))


@pytest.mark.parametrize("what", ["size 1", "area"])
def test_the_threshold_is_the_smallest_that_loses_no_more(stored, counted, what):
    found, logits, labels = stored
    exits, costs = photographs_cascade.exits_of(found, logits)
    weights = photographs_cascade.AT[what]
    heats, level = photographs_cascade.choose(exits, labels, costs, weights, 1.0)

    def loss(threshold):
        accuracy, _ = photographs_cascade.outcome(exits, labels, costs, heats, threshold)
        whole = 100 * (exits[-1].argmax(-1) == labels).double().mean(1)
        return (weights * (whole - accuracy)).sum().item()

    below = photographs_cascade.LEVELS[photographs_cascade.LEVELS.index(level) - 1]
    assert loss(level) <= 1 < loss(below)


def test_a_fit_of_factors_is_at_a_minimum(stored):
    _, logits, labels = stored
    logits = logits[:, ONE]
    for kind, scores in photographs_calibration.KINDS.items():
        free = photographs_calibration.fit(kind, logits, labels)

        def loss(at, scores=scores):
            return torch.nn.functional.nll_loss(scores(logits, at), labels).item()

        for shift in (0.05, -0.05):
            for row, column in ((0, 0), (0, 1), (1, 0)):
                moved = free.clone()
                moved[row, column] += shift
                assert loss(moved) >= loss(free) - 1e-7


def test_the_table_in_the_docs_is_the_report():
    report = json.loads((RESULTS.parent / "photographs_cascade.json").read_text())
    ours, plain = report["cascades"][NAME], report["rivals"]["plain_default_lr1e-3_fold0"]
    one, area = ours["size 1"], ours["area"]
    rows = [("plain, 128 pixels", plain["size 1"][-1], plain["area"][-1])]
    rows += [("plain, image at half its size", plain["size 1"][0], plain["area"][0])]
    for name, place in (("all stages", -1), ("the small image alone", 0)):
        rows += [(name, *((ours["exit_costs"][place], each["exits_alone"][place]) for each in (one, area)))]
    for first, second in zip(one["chosen"], area["chosen"], strict=True):
        allowed = f"{first['allowed']:g} point" + "s" * (first["allowed"] != 1)
        rows += [(f"cascade, {allowed} allowed", *((each["cost"], each["accuracy"]) for each in (first, second)))]
    text = (RESULTS.parents[2] / "docs" / "cascade.md").read_text()
    for name, *pairs in rows:
        cells = [cell for cost, accuracy in pairs for cell in (f"{accuracy:.2f}", f"× {cost:.3f}")]
        assert f"| {name} | {' | '.join(cells)} |" in text, name

    jitter, its_plain = report["cascades"]["mean_jitter_lr1e-3_fold0"], report["rivals"]["plain_jitter_lr1e-3_fold0"]
    one, area = (next(row for row in jitter[what]["chosen"] if row["allowed"] == 0.3) for what in ("size 1", "area"))
    batch = report["rivals"]["one-size-per-batch_default_lr1e-3_fold0"]
    statements = [
        f"has {batch['size 1'][-1][1]:.2f} % and an area of {batch['area'][-1][1]:.2f} at × "
        f"{batch['area'][-1][0]:.3f}, and {batch['size 1'][0][1]:.2f} % with the image at half its size",
        f"{one['accuracy']:.2f} % at × {one['cost']:.3f} (0.3 points allowed; all stages "
        f"{jitter['size 1']['exits_alone'][-1]:.2f} %) against {its_plain['size 1'][-1][1]:.2f} %. Its area is "
        f"{area['accuracy']:.2f} at × {area['cost']:.3f}, the plain network's {its_plain['area'][-1][1]:.2f}",
    ]
    assert [statement for statement in statements if statement not in " ".join(text.split())] == []


def test_what_docs_say_of_calibration_is_what_was_found():
    report = json.loads((RESULTS.parent / "photographs_calibration.json").read_text())
    text = " ".join((RESULTS.parents[2] / "docs" / "results.md").read_text().split())
    found = report["records"][NAME]
    one, every = (found[f"fitted at {where}"] for where in ("size 1", "all sizes"))
    signed = [f"{gain['gain']:.2f} ± {gain['std']:.2f}".replace("-", "−") for gain in (one["accuracy"], every["area"])]
    assert f"accuracy at size 1 changes by {signed[0]} points" in text and f"the area by {signed[1]}" in text
