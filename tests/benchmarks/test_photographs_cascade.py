"""The cascade's report of stored logits, against loops over images."""

import json

import numpy as np
import pytest
import torch

from benchmarks import photographs_cascade
from benchmarks.photographs import RESULTS, SIZES
from timm_wsms.network.exits import choose_thresholds

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


def test_calibrated_thresholds_are_those_that_a_user_gets():
    """Against `Cascade.calibrate` with a network whose stage logits are the stored ones."""
    found, arrays = photographs_cascade.read_records()["mean_jitter_lr1e-3_fold2"]
    run = {**found, "arrays": arrays}
    exits, costs = photographs_cascade.exits_of(run, torch.from_numpy(arrays["validation_logits"]).double())
    one = SIZES.index(1.0)
    chosen = choose_thresholds(exits[:, one], torch.from_numpy(arrays["validation_labels"]), 2.0)
    small, whole = (
        torch.from_numpy(arrays["test_logits"][stages, one].astype(float).mean(0)) for stages in ([1], [0, 1])
    )
    labels = torch.from_numpy(arrays["test_labels"])
    right, cost = 0, 0.0
    for image in range(len(labels)):
        sure = (small[image] / chosen.temperatures[0]).softmax(0).max() >= chosen.confidence[0]
        right += int((small if sure else whole)[image].argmax() == labels[image])
        cost += costs[0] if sure else costs[1]
    hits, spent = photographs_cascade.cascade_on_fold(run, photographs_cascade.AT["size 1"], "calibrate(2)")
    assert hits[one].sum() == right
    assert spent[one].mean() == pytest.approx(cost / len(labels))


def test_the_words_of_the_docs_are_the_report():
    report = json.loads((RESULTS.parent / "photographs_cascade.json").read_text())
    words = " ".join((RESULTS.parents[2] / "docs" / "cascade.md").read_text().split())
    every = {(data, regime, form): found for data, regime, form, found in photographs_cascade.every(report)}
    cascades = {key: {row["allowed"]: row for row in found["size 1"]["cascade"]} for key, found in every.items()}
    targets = photographs_cascade.of_targets(report)
    met = {tuple(cell.strip(" `") for cell in line.split("|")[1:5]): line for line in targets if "| yes" in line}
    for side in (112, 128):
        line = met["Flowers", "crop and scale jitter", f"averaging, {side} pixels", "calibrate(2)"]
        assert "| 112, 96, 80, 64 |" in line and "| yes |" in line
    assert "meets the target on flowers, against plain networks of all four smaller sizes; with averaging at" in words
    for side, level in ((112, "calibrate(1)"), (128, "calibrate(2)")):
        line = met["Imagenette", "timm's crop, 20 epochs", f"averaging, {side} pixels", level]
        assert "| 96, 64 | none |" in line
    assert "the target is met on Imagenette too, against plain networks at 96 and 64 pixels." in words
    jitter = every["imagenette", "jitter", "mean at 128"]
    assert photographs_cascade.above(jitter) == ["plain at 96 (96)"]
    row = cascades["imagenette", "jitter", "mean at 128"]["calibrate(2)"]
    assert row["against plain"][0] >= -0.3 and row["cost"] <= 0.6
    sibling = every["imagenette", "default", "mean, resnet14t"]["size 1"]
    assert all(row["against plain"][2] < 0 for row in sibling["cascade"])  # "far behind"
    assert sibling["rivals"]["next larger backbone"][0]["against plain"][2] < 0
    assert ("Flowers", "timm's crop", "averaging, 112 pixels", "calibrate(2)") not in met
    for form in ("mean", "mean at 128"):
        assert cascades["flowers", "default", form]["calibrate(2)"]["cost"] > 0.6
    smaller = every["imagenette", "default", "mean at 128"]
    assert set(photographs_cascade.above(smaller)) == {"plain at 96 (96)", "plain at 80 (80)"}
    assert abs(np.mean(smaller["size 1"]["rivals"]["plain at 64"][0]["each fold"])) < 1  # "about as many"
    for data, form in (("flowers", "mean"), ("flowers", "mean at 128"), ("imagenette", "mean at 128")):
        longer = every[data, "jitter", form]["size 1"]["rivals"]["plain longer"][0]
        places = [every[data, "jitter", form]["folds"].index(fold) for fold in longer["folds"]]
        ours = [row["each fold"] for row in cascades[data, "jitter", form].values() if row["cost"] <= 1]
        assert np.mean(longer["each fold"]) > max(np.mean([each[place] for place in places]) for each in ours)
    for data, count in (("mean_jitter_lr1e-3_fold2", 862), ("imagenette_mean-at-128_jitter_lr4e-3_fold0", 955)):
        assert len(photographs_cascade.read_records()[data][1]["validation_labels"]) == count
    default = every["flowers", "default", "mean"]
    for found in every.values():
        assert f"{found['size 1']['images']:,} photographs" in words
    rivals = {form: its[0] for form, its in default["size 1"]["rivals"].items()}
    lost = {side: rivals["plain"]["accuracy"] - rivals[f"plain at {side}"]["accuracy"] for side in (96, 64)}
    assert lost[96] < 0.5 and 2.5 < lost[64] < 3.5  # "hardly any", "about 3"
    small = cascades["flowers", "default", "mean"]["the small image alone"]
    assert small["accuracy"] - rivals["plain at 64"]["accuracy"] == pytest.approx(1, abs=0.3)
    assert small["cost"] < rivals["plain at 64"]["cost"]
    with_jitter = every["flowers", "jitter", "mean"]["size 1"]
    small, at64 = (
        cascades["flowers", "jitter", "mean"]["the small image alone"],
        with_jitter["rivals"]["plain at 64"][0],
    )
    assert small["accuracy"] - at64["accuracy"] == pytest.approx(-0.5, abs=0.1)
    line = sorted((its[0]["cost"], its[0]["accuracy"]) for name, its in with_jitter["rivals"].items() if " at " in name)
    line.append((1.0, with_jitter["rivals"]["plain"][0]["accuracy"]))
    for row in with_jitter["cascade"]:
        if 0.395 < row["cost"] <= 1:
            assert row["accuracy"] > np.interp(row["cost"], *zip(*line, strict=True))
    trained = sorted((row["cost"], row["accuracy"]) for form, row in rivals.items() if form.startswith("plain at"))
    between = [row for row in default["size 1"]["cascade"] if trained[0][0] < row["cost"] < trained[-1][0]]
    assert len(between) >= 3
    for row in between:  # above the line that joins the plain networks
        assert row["accuracy"] > np.interp(row["cost"], *zip(*trained, strict=True))
    level = rivals["one size per batch"]["accuracy"] - cascades["flowers", "default", "mean"]["all stages"]["accuracy"]
    assert abs(level) < 0.2
    after_5 = every["imagenette", "default", "mean"]["area"]["cascade"]
    assert all(row["against plain"][2] < 0 for row in after_5)
