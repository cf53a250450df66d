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
    every = {("flowers", row["regime"], row["form"]): row for row in REPORT["test"]}
    every |= {("Imagenette", row["regime"], row["form"]): row for row in REPORT["imagenette_test"]}
    folds = {(row["regime"], row["form"]): row for row in REPORT["folds"]}

    def ahead(data: str, regime: str, part: str, other: str = "plain") -> str:
        gain = every[data, regime, "mean at 128, stage 1 alone"][f"against {other}"][part]
        return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*gain).replace("-", "−")

    def spread(part: str) -> str:
        values = folds["jitter", "mean at 128"]["against plain"][part]
        return f"{np.mean(values):+.2f} ± {np.std(values, ddof=1):.2f}".replace("-", "−")

    rival = "one size per batch"
    equal_cost = [
        *(f"| flowers {line}" for line in photographs_tables.of_equal_cost(REPORT["test"], photographs_tables.TRAINED)),
        *(
            f"| Imagenette {line}"
            for line in photographs_tables.of_equal_cost(
                REPORT["imagenette_test"], photographs_tables.IMAGENETTE_TRAINED
            )
        ),
        f"and {every['flowers', 'default', 'mean at 128']['arithmetic']:.2f} times as much in training",
        "with the crop alone, stage 1 is ahead of all of these in area**: by "
        f"{ahead('flowers', 'default', 'area')} points of area and, of one size per batch, "
        f"{ahead('flowers', 'default', 'area', rival)}; at size 1 by {ahead('flowers', 'default', 'size 1')}, "
        f"while no difference from one size per batch is seen there, {ahead('flowers', 'default', 'size 1', rival)}",
        f"that was trained as much, it is ahead by {ahead('flowers', 'default', 'area', 'plain longer')}",
        f"the lead is small**, {ahead('flowers', 'jitter', 'area')} and {ahead('flowers', 'jitter', 'area', rival)}, "
        "most of it on small objects, and none is seen over the plain network that was trained as much, "
        f"{ahead('flowers', 'jitter', 'area', 'plain longer')};",
        f"it is only {spread('stage 1 alone')} ahead of the plain network, and {spread('stage 1 alone, size 1')} at",
    ]
    imagenette = {
        regime: tuple(ahead("Imagenette", regime, part) for part in ("area", "size 1"))
        for regime in ("20 epochs", "jitter", "default")
    }
    long, jitter, short = imagenette.values()
    alone = {regime: every["Imagenette", regime, "mean at 128, stage 1 alone"] for regime in imagenette}
    others = [
        f"{ahead('Imagenette', regime, 'area', rival)} and {ahead('Imagenette', regime, 'size 1', rival)} {epochs}"
        for regime, epochs in (
            ("20 epochs", "with 20 epochs"),
            ("jitter", "with scale jitter"),
            ("default", "with 5 epochs and the crop alone"),
        )
    ]
    row = alone["default"]
    assert (
        row["folds"] == alone["jitter"]["folds"] == [0, 1, 2]
        and row["against plain"]["area"][1] > 0 > row["against plain"]["large"][2]
    )
    equal_cost += [
        f"it is ahead of the plain network by {long[0]} points of area and {long[1]} at size 1 with 20 epochs and the "
        f"crop alone (one run); by {jitter[0]} and {jitter[1]} with 5 epochs and scale jitter (three runs); and "
        f"by {short[0]} and {short[1]} with 5 epochs and the crop alone (three runs), with a loss on large objects. "
        f"Compared with one size per batch, it has {', '.join(others[:2])}, and {others[2]}.",
    ]
    longer = {regime: every["Imagenette", regime, "plain longer"] for regime in ("default", "jitter")}
    over_stage1 = {regime: row["against mean at 128, stage 1 alone"] for regime, row in longer.items()}
    assert all(gain["area"][1] > 0 for gain in over_stage1.values()) and over_stage1["default"]["small"][2] < 0
    mean, low, high = (-end for end in over_stage1["default"]["small"])
    of_areas = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*gain["area"]) for gain in over_stage1.values()]
    equal_cost += [
        f"trained {6 / 5:.1f} times as long is ahead of it after 5 epochs** (one run each): by {of_areas[0]} in area "
        f"with the crop alone and {of_areas[1]} with scale jitter, on large objects; with the crop alone stage 1 is "
        f"ahead on small ones, by {mean:+.2f} [{high:+.2f}, {low:+.2f}].",
    ]
    cifar10 = json.loads((ROOT / "benchmarks" / "results" / "stage_one_cifar10.json").read_text())["rows"]
    undistilled, distilled = (
        cifar10[name]["area"] for name in ("its stage 1 alone", "stage 1 alone, with distillation")
    )
    changed = every["Imagenette", "default", "mean at 128, distilled, stage 1 alone"]
    on_imagenette = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*changed["against mean at 128, stage 1 alone"]["area"])
    return [
        f"it raises the area of stage 1 alone from {undistilled:.2f} to {distilled:.2f}, with no loss at size 1",
        f"from random weights too, it changes it by {on_imagenette.replace('-', '−')} (one run)",
        *photographs_tables.of_choices(REPORT["test"]),
        *equal_cost,
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
    for statement in (" ".join(words.split()) for words in statements()):
        assert statement in text, statement
        text = text.replace(statement, "")
    left = re.sub(r"`[^`]*`|sizes from 0.35 to 2.83|At 0.875 of the plain|95 %", "", text)
    assert re.findall(r"\d+\.\d+", left) == []


def test_all_forms_that_were_tried_are_in_the_table():
    """But those that the first table or another document shows: the plain network's own sizes, and the form itself."""
    elsewhere = {"plain", "mean", "plain at 112", "plain at 96", "plain at 64", "mean at 128", "mean, lite1"}
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
