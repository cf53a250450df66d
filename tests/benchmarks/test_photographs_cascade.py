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
    monkeypatch.setattr(photographs_cascade, "count", lambda backbone, side, classes: side**2)
    monkeypatch.setattr(photographs_cascade, "plain_cost", lambda data: 128**2)


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


def test_a_folds_cascade_is_that_of_its_validation_threshold(counted):
    """The images come in the order of the data set, as those of the plain network that they are compared with."""
    name = "mean_default_lr1e-3_fold2"
    found, arrays = photographs_cascade.read_records()[name]
    right, cost = photographs_cascade.cascade_on_fold({**found, "arrays": arrays}, photographs_cascade.AT["area"], 1.0)
    exits, costs = photographs_cascade.exits_of(found, torch.from_numpy(arrays["validation_logits"]).double())
    labels = torch.from_numpy(arrays["validation_labels"])
    (heat,), level = photographs_cascade.choose(exits, labels, costs, photographs_cascade.AT["area"], 1.0)
    stored = arrays["test_logits"].astype(np.float64)
    for size in range(len(SIZES)):
        for place in range(0, stored.shape[2], 40):
            where = sorted(arrays["test_index"].tolist()).index(arrays["test_index"][place])
            small, label = stored[1, size, place] / heat, arrays["test_labels"][place]
            early = np.exp(small - small.max()).max() / np.exp(small - small.max()).sum() >= level
            taken = stored[1, size, place] if early else stored[:, size, place].mean(0)
            assert right[size, where] == (taken.argmax() == label)
            assert cost[size, where] == pytest.approx(costs[0] if early else costs[1])


def test_rivals_see_the_same_images_and_are_compared_fold_by_fold():
    """Against a loop over the images of two folds, found by their place in the data set."""
    records = photographs_cascade.read_records()
    weights = photographs_cascade.AT["area"].numpy()
    base, hits, labels = [], [], []
    for fold in (2, 3):
        for form, lr, place, into in (
            ("plain", "2e-3", 0, base),
            ("plain", "2e-3", 2, hits),
            ("mean", "1e-3", 0, labels),
        ):
            arrays = records[f"{form}_default_lr{lr}_fold{fold}"][1]
            of_image = {index: at for at, index in enumerate(arrays["test_index"].tolist())}
            rows = [of_image[index] for index in sorted(of_image)]
            if into is labels:
                labels.append(arrays["test_labels"][rows].tolist())
                plain = records[f"plain_default_lr2e-3_fold{fold}"][1]
                assert labels[-1] == plain["test_labels"][np.argsort(plain["test_index"])].tolist()
                continue
            right = [arrays["test_logits"][place, :, row].argmax(-1) == arrays["test_labels"][row] for row in rows]
            into.append(np.array([sum(w * one for w, one in zip(weights, image, strict=True)) for image in right]))
    runs = []
    for fold in (2, 3):
        found, arrays = records[f"plain_default_lr2e-3_fold{fold}"]
        runs.append({**found, "arrays": arrays})
    row = photographs_cascade.rival(runs, weights, base)[2]
    assert row["pixels"] == round(128 * 0.5**0.5) and 0.5 < row["cost"] < 0.6
    assert row["accuracy"] == pytest.approx(100 * np.concatenate(hits).mean(), abs=0.006)
    gains = [100 * (one - other).mean() for one, other in zip(hits, base, strict=True)]
    assert row["each fold"] == pytest.approx(gains, abs=0.006)
    mean, low, high = row["against plain"]
    assert low < mean < high and mean == pytest.approx(
        100 * (np.concatenate(hits) - np.concatenate(base)).mean(), abs=0.006
    )


def test_the_tables_and_words_of_the_docs_are_the_report():
    report = json.loads((RESULTS.parent / "photographs_cascade.json").read_text())
    text = (RESULTS.parents[2] / "docs" / "cascade.md").read_text()
    words = " ".join(text.split())
    default, jitter = (report["flowers"][regime] for regime in ("default", "jitter"))
    for found in (default, jitter, *report["imagenette"].values()):
        assert "\n".join(photographs_cascade.lines(found)) in text
        assert f"{found['size 1']['images']:,} photographs" in words
    one, with_jitter = ({row["allowed"]: row for row in found["size 1"]["cascade"]} for found in (default, jitter))
    (alone,) = default["size 1"]["rivals"]["stage 1 alone"]
    after_20 = report["imagenette"]["20 epochs"]["size 1"]
    long = {row["allowed"]: row for row in after_20["cascade"]}
    after_5 = report["imagenette"]["default"]
    assert after_5["folds"] == [0, 1, 2]
    assert all(row["against plain"][2] < 0 for row in after_5["area"]["cascade"])
    short = {row["allowed"]: row for row in after_5["size 1"]["cascade"]}

    def gain(row):
        return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row["against plain"]).replace("-", "−")

    folds = ", ".join(f"{value:+.2f}" for value in one[1.0]["each fold"])
    below = sum(value < 0 for value in one[2.0]["each fold"])
    smaller = [default["size 1"]["rivals"][form][2] for form in ("plain", "one size per batch")]
    whole = [default["size 1"]["rivals"][form][0] for form in ("plain", "one size per batch")]
    lost = [before["accuracy"] - after["accuracy"] for before, after in zip(whole, smaller, strict=True)]
    assert (below, len(one[2.0]["each fold"])) == (3, 4)
    least, most = sorted(round(loss) for loss in lost)
    assert f"also at one size per batch, loses {least} to {most} points if it is given 91 pixels" in words
    assert f"size 1, one size per batch has {whole[1]['accuracy']:.2f} %, as much as all stages" in words
    rivals, area = default["size 1"]["rivals"], default["area"]
    at64, at112 = (rivals[f"plain at {side}"][0] for side in (64, 112))
    small = {row["allowed"]: row for row in area["cascade"]}["the small image alone"]
    tested = json.loads((RESULTS.parent / "photographs.json").read_text())["test"]
    (stage1,) = (row for row in tested if (row["regime"], row["form"]) == ("default", "mean, stage 1 alone"))
    sibling = default["others"]["mean, lite1"]
    lite1, lite1_area = ({row["allowed"]: row for row in sibling[what]["cascade"]} for what in ("size 1", "area"))
    at_128 = report["imagenette"]["20 epochs"]["others"]["mean at 128"]
    assert "\n".join(photographs_cascade.lines(at_128, ["stage 1 alone"])) in text
    wide, in_area = ({row["allowed"]: row for row in at_128[what]["cascade"]}[0.3] for what in ("size 1", "area"))
    assert in_area["against plain"][1] < 0 < in_area["against plain"][2]
    statements = [
        f"on fold 0 alone ({sibling['size 1']['images']:,} photographs, timm's crop), has "
        f"{lite1[1.0]['accuracy']:.2f} % at {lite1[1.0]['cost']:.2f} of the MACs of the plain EfficientNet-Lite0,"
        f" which has {sibling['size 1']['rivals']['plain'][0]['accuracy']:.2f} %: {gain(lite1[1.0])}. In area it is"
        f" ahead by {gain(lite1_area[2.0])} at {lite1_area[2.0]['cost']:.2f}.",
        f"At 128 pixels it has {wide['accuracy']:.2f} % at {wide['cost']:.2f}, and no loss of area at "
        f"{in_area['cost']:.2f}, {gain(in_area)}",
        f"At {one[1.0]['cost']:.2f} of the plain network's MACs the cascade is ahead of it** by {gain(one[1.0])} "
        f"points ({folds} on the four folds)",
        f"At {one[2.0]['cost']:.2f} no difference is seen: {gain(one[2.0])}, below the plain network on three of four",
        f"stage 1 alone has {alone['accuracy']:.2f} % at {alone['cost']:.2f}",
        f"trades {alone['accuracy'] - one[2.0]['accuracy']:.2f} points for half of the cost",
        f"trained at 64 has {at64['accuracy']:.2f} % at {at64['cost']:.2f} of the MACs, and an area of "
        f"{area['rivals']['plain at 64'][0]['accuracy']:.2f}",
        f"small image alone has {one['the small image alone']['accuracy']:.2f} % and {small['accuracy']:.2f} "
        f"at {small['cost']:.2f}",
        f"the plain network has {at112['accuracy']:.2f} %, and an area of "
        f"{area['rivals']['plain at 112'][0]['accuracy']:.2f}",
        "{:+.2f} [{:+.2f}, {:+.2f}] points of area".format(*stage1["against plain at 112"]["area"]).replace("-", "−"),
        f"is seen at {with_jitter[1.0]['cost']:.2f} of its MACs, {gain(with_jitter[1.0])}",
        f"At size 1 no difference is seen, for the cascade at {short[0.3]['cost']:.2f} of the MACs "
        f"{gain(short[0.3])}.",
        f"{long[0.3]['accuracy']:.2f} % at {long[0.3]['cost']:.2f} of the plain network's MACs**, against "
        f"{after_20['rivals']['plain'][0]['accuracy']:.2f} %: no difference is seen at size 1, {gain(long[0.3])}",
    ]
    assert with_jitter[1.0]["against plain"][1] < 0 < with_jitter[1.0]["against plain"][2]
    assert short[0.3]["against plain"][1] < 0 < short[0.3]["against plain"][2]
    assert long[0.3]["against plain"][1] < 0 < long[0.3]["against plain"][2]
    trained = sorted((rivals[form][0]["cost"], rivals[form][0]["accuracy"]) for form in ("plain at 64", "plain at 112"))
    between = [row for row in default["size 1"]["cascade"] if trained[0][0] < row["cost"] < trained[1][0]]
    assert len(between) >= 3
    for row in between:  # above the line that joins the plain networks
        assert row["accuracy"] > np.interp(row["cost"], *zip(*trained, strict=True))
    assert [statement for statement in statements if statement not in words] == []


def test_what_docs_say_of_calibration_is_what_was_found():
    report = json.loads((RESULTS.parent / "photographs_calibration.json").read_text())
    text = " ".join((RESULTS.parents[2] / "docs" / "results.md").read_text().split())
    found = report["records"][NAME]
    one, every = (found[f"fitted at {where}"] for where in ("size 1", "all sizes"))
    signed = [f"{gain['gain']:.2f} ± {gain['std']:.2f}".replace("-", "−") for gain in (one["accuracy"], every["area"])]
    assert f"accuracy at size 1 changes by {signed[0]} points" in text and f"the area by {signed[1]}" in text
