"""docs/choosing.md: every figure in it is in the results file, and its gains are those of the stored logits."""

import json
import re

import numpy as np
import pytest

from benchmarks import photographs_tables
from benchmarks.photographs import RESULTS, SIZES
from tests.helpers.paths import ROOT
from timm_wsms.evaluation.object_size.curve import area_weights

TEXT = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
REPORT = json.loads((ROOT / "benchmarks" / "results" / "photographs.json").read_text(encoding="utf-8"))
SCREENED = {row["form"]: row for row in REPORT["screening"] if row["regime"] == "default"}


def gain(form: str, part: str) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*REPORT["jitter_gains"][form][part]).replace("-", "−")


def statements() -> list[str]:
    tested = {(row["regime"], row["form"]): row for row in REPORT["test"]}
    rates, gains = SCREENED["mean"]["area_by_learning_rate"], REPORT["jitter_gains"]
    assert gains["plain"]["images"] == gains["mean"]["images"] == tested["jitter", "mean"]["images"]
    return [
        *photographs_tables.of_choices(REPORT["test"]),
        *photographs_tables.of_tried(REPORT["screening"]),
        f"EfficientNet-Lite0 on flowers; {tested['jitter', 'mean']['images']:,} test images;",
        f"{gain('plain', 'area')} points of area for the plain one and {gain('mean', 'area')} for averaging",
        f"at size 1 {gain('plain', 'size 1')} and {gain('mean', 'size 1')} (the same {gains['plain']['images']:,} test",
        f"evaluated on its {SCREENED['plain']['images']} validation images.",
        "The plain network has an area of "
        f"{SCREENED['plain']['area']:.2f} there, averaging {SCREENED['mean']['area']:.2f}",
        f"with half and with twice its learning rate, averaging itself has {rates['5e-4']:.2f} and {rates['2e-3']:.2f}",
    ]


def test_every_figure_is_in_the_results_file():
    text = " ".join(TEXT.split())
    for statement in statements():
        assert statement in text, statement
        text = text.replace(statement, "")
    left = re.sub(r"`[^`]*`|sizes from 0.35 to 2.83|size makes the cost|of 0.875 of|95 %", "", text)
    assert re.findall(r"\d+\.\d+", left) == []


def test_all_forms_that_were_tried_are_in_the_table():
    """But those that the first table or another document shows: the plain network's own sizes, and the form itself."""
    elsewhere = {"plain", "mean", "plain at 112", "plain at 96", "plain at 64"}
    assert SCREENED.keys() - elsewhere == photographs_tables.TRIED.keys() & SCREENED.keys()
    assert all(SCREENED[form]["against_mean"]["area"][0] < 0 for form in photographs_tables.TRIED if form in SCREENED)
    assert len(photographs_tables.of_tried(REPORT["screening"])) == len(SCREENED.keys() - elsewhere)


def test_the_learning_rates_are_those_that_it_says():
    rates = {form: [*row["area_by_learning_rate"]] for form, row in SCREENED.items()}
    assert (len(rates["plain"]), len(rates["mean"]), len(rates["one size per batch"])) == (4, 3, 3)
    for form in photographs_tables.TRIED.keys() & SCREENED.keys() - {"one size per batch"}:
        own = "mean" if form.startswith(("mean", "concat")) else "plain"
        assert rates[form] == [SCREENED[own]["lr"]]


def test_what_scale_jitter_gains_is_of_the_same_images():
    """Against a loop over folds and images."""
    differences = []
    for fold in REPORT["jitter_gains"]["plain"]["folds"]:
        hits = {}
        for regime, rate in (("default", "2e-3"), ("jitter", "1e-3")):
            stored = np.load(RESULTS / f"plain_{regime}_lr{rate}_fold{fold}_tested.npz")
            for place, index in enumerate(stored["test_index"].tolist()):
                right = stored["test_logits"][0, :, place].argmax(-1) == stored["test_labels"][place]
                hits[regime, index] = 100 * (area_weights(SIZES) @ right)
        indices = {index for _, index in hits}
        differences += [hits["jitter", index] - hits["default", index] for index in indices]
    assert len(differences) == REPORT["jitter_gains"]["plain"]["images"]
    assert np.mean(differences) == pytest.approx(REPORT["jitter_gains"]["plain"]["area"][0], abs=0.006)
