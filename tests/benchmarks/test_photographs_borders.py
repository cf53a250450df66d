"""The report of small objects on other borders, against loops over images; and what documents quote of it."""

import itertools
import json

import numpy as np
import pytest

from benchmarks import photographs_borders as borders
from benchmarks.photographs import RESULTS, SIZES
from timm_wsms.evaluation.object_size.curve import area_weights


def arrays(sizes, stages, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(7)
    return {
        "test_logits": rng.standard_normal((stages, sizes, 7, 3)).astype(np.float16),
        "test_labels": (order % 3),
        "test_index": order,
    }


@pytest.mark.parametrize(("form", "stages"), [("mean", 2), ("plain", 2)])
def test_hits_below_size_one_come_from_the_other_border(form, stages):
    stored, other = arrays(len(SIZES), stages, 0), arrays(len(borders.SMALL) - 1, 1 if form == "plain" else 2, 1)
    hits = borders.small_hits(stored, other, form == "mean")
    assert hits.shape == (len(borders.SMALL), 7)
    for size in range(len(borders.SMALL)):
        source = stored if SIZES[size] == 1 else other
        for place, image in enumerate(source["test_index"]):
            logits = source["test_logits"][:, size, place].astype(np.float64)
            logits = logits.mean(0) if form == "mean" else logits[0]
            assert hits[size, image] == (logits.argmax() == source["test_labels"][place])
    on_mean = borders.small_hits(stored, None, form == "mean")
    assert (on_mean[-1] == hits[-1]).all() and (on_mean != hits).any()


def read():
    return json.loads((RESULTS.parent / "photographs_borders.json").read_text())["trained_with"]


def test_the_committed_report_is_of_the_stored_logits():
    reports = read()
    for regime, (row, (form, averaged)) in itertools.product(borders.FORMS, borders.ROWS.items()):
        right = []
        for fold in reports[regime]["folds"]:
            name = borders.Run(form, regime, borders.FORMS[regime][form], fold, True).trained
            with np.load(RESULTS / f"{name}_blur.npz") as stored:
                logits = stored["test_logits"].astype(np.float64)
                right.append((logits.mean(0) if averaged else logits[0]).argmax(-1) == stored["test_labels"])
        shares = 100 * np.concatenate(right, 1).mean(1)
        assert reports[regime]["borders"]["blur"][row]["top1"][:-1] == pytest.approx(shares, abs=0.006)
    for rows in itertools.chain(*(found["borders"].values() for found in reports.values())):
        for row in rows.values():
            assert row["area"] == pytest.approx(area_weights(borders.SMALL) @ row["top1"], abs=0.011)
        for name in ("averaging", "averaging at 128, stage 1 alone"):
            gain = rows[name]["area"] - rows["plain"]["area"]
            assert rows[name]["against plain"][0] == pytest.approx(gain, abs=0.011)
            assert rows[name]["against plain"][1] < gain < rows[name]["against plain"][2]


def test_the_table_in_the_docs_is_the_report():
    reports = read()
    text = (RESULTS.parents[2] / "docs" / "results.md").read_text()
    for found in reports.values():
        assert "\n".join(borders.lines(found)) in text
        assert f"{found['images']:,} photographs" in text
    words = " ".join(text.split())
    rows = "averaging", "averaging at 128, stage 1 alone"
    for regime, border, row in itertools.product(reports, borders.BORDERS, rows):
        for other in ("plain", "one size per batch"):
            gain = reports[regime]["borders"][border][row][f"against {other}"]
            assert "{:+.2f} [{:+.2f}, {:+.2f}]".format(*gain).replace("-", "−") in words
    leads = [
        found["borders"][border][rows[1]]["against plain"] for found in reports.values() for border in found["borders"]
    ]
    assert f"by {min(leads)[0]:+.2f} to {max(leads)[0]:+.2f} points" in words and min(low for _, low, _ in leads) > 0
