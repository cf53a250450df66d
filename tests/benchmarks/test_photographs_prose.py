"""What docs/results.md says of photographs, in words, against the records and the results files."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats
import timm

from benchmarks import photographs_data, photographs_records, photographs_report, photographs_tables
from benchmarks.photographs import SIZES, Run
from tests.helpers.paths import ROOT
from timm_wsms.evaluation.cost import multiplications

REPORT = json.loads((photographs_report.RESULTS.parent / "photographs.json").read_text())
LINES = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
PROSE = " ".join(" ".join(line for line in LINES if not line.startswith("|")).split())


def with_interval(gain, sign="+"):
    """A mean with its interval as the document writes it; sign "-": no plus sign before the mean."""
    return f"{gain[0]:{sign}.2f} [{gain[1]:+.2f}, {gain[2]:+.2f}]".replace("-", "−")


def test_the_weights_are_those_that_the_document_names():
    weights = json.loads((ROOT / "benchmarks" / "results" / "photographs_weights.json").read_text())
    for name in photographs_data.SIZES:
        assert weights[f"{name}_largest_logit_difference"] <= photographs_data.TOLERANCE
    assert (
        f"recognizes {weights['lite0_imagenette_validation_top1']:.2f} % of Imagenette's {weights['images']:,}" in PROSE
    )


def test_the_document_has_the_areas_of_all_learning_rates():
    found = [*REPORT["screening"], *REPORT["imagenette"]]
    several = [photographs_tables.spread(row) for row in found if len(row["area_by_learning_rate"]) > 1]
    assert len(several) >= 5 and [spread for spread in several if spread not in PROSE] == []


def test_the_words_of_the_document_say_what_was_measured():
    """What is called a gain, a loss or not significant is one; the figures are compared in another file."""
    flowers, imagenette = (
        {(row["regime"], row["form"]): row for row in REPORT[name]} for name in ("test", "imagenette_test")
    )

    def said(gain):
        return with_interval(gain, "-")

    alone = "mean at 128, stage 1 alone"
    for form, regime in itertools.product(("mean", "mean, stage 1 alone", alone), ("default", "jitter")):
        gain = flowers[regime, form]["against plain"]["area"]
        assert (gain[1] > 0) == ((form, regime) != (alone, "default")) and said(gain) in PROSE
        gain = flowers[regime, form]["against one size per batch"]["area"]
        assert (gain[1] > 0) == (regime == "jitter") and said(gain) in PROSE
    for other in ("plain", "one size per batch"):  # "all of stage 1's gain is on small objects"
        assert flowers["jitter", alone][f"against {other}"]["large"][0] < 0
    assert flowers["jitter", "mean"]["against plain"]["large"][1] > 0
    for form in ("mean", "mean, stage 1 alone", alone):
        _, low, high = flowers["jitter", form]["against plain"]["size 1"]
        assert low < 0 < high
    assert flowers["jitter", "mean"]["images"] == 3448 and "on 3,448 test images" in PROSE
    gains = {key: imagenette[key]["against plain"] for key in imagenette if "against plain" in imagenette[key]}
    for regime, part in itertools.product(("20 epochs", "jitter", "default"), ("area", "size 1")):
        assert said(gains[regime, alone][part]) in PROSE
    assert gains["default", alone]["small"][1] > 0 > gains["default", alone]["large"][2]
    assert gains["20 epochs", alone]["area"][1] > 0 and gains["jitter", alone]["area"][1] > 0
    (narrow,) = (r for r in REPORT["screening"] if (r["regime"], r["form"]) == ("narrow", "mean"))
    area, size_1 = (said(narrow["against_plain"][part]) for part in ("area", "size 1"))
    assert f"averaging gains +{area} points of area and +{size_1} at size 1 over the plain network (one run" in PROSE
    at_one = "from {:.2f} to {:.2f} %".format(
        *(imagenette[regime, "plain"]["size 1"] for regime in ("default", "jitter"))
    )
    assert f"lowers its accuracy at size 1, {at_one}" in PROSE
    assert gains["20 epochs", "mean at 128"]["small"][2] < 0.02 and gains["20 epochs", "mean at 128"]["large"][1] > 0
    assert gains["default", "mean"]["area"][2] < 0 and gains["20 epochs", "mean"]["area"][2] < 0
    screened = {(row["regime"], row["form"]): row["area"] for row in REPORT["imagenette"]}
    at_128 = [screened[regime, "mean at 128"] for regime in (photographs_records.LATER, "default")]
    later, of_plain = gains[photographs_records.LATER, alone], screened[photographs_records.LATER, "plain"]
    assert (
        f"the plain network has an area of {of_plain:.2f} on these images, averaging "
        f"at 128 pixels {at_128[0]:.2f} ({at_128[1]:.2f} with 0.004). At that rate stage 1 of the latter gains "
        f"+{said(later['area'])} points of area on the test images, and +{said(later['size 1'])} at size 1." in PROSE
    )
    longer = {regime: imagenette[regime, "plain longer"] for regime in ("default", "jitter")}
    assert all(row[f"against {alone}"]["area"][1] > 0 for row in longer.values())
    (seeds,) = (row["against plain"] for row in REPORT["imagenette_seeds"] if row["form"] == "mean")
    assert seeds["folds"] == imagenette["default", "mean"]["folds"] == imagenette["default", "plain"]["folds"]
    assert np.mean(seeds["area"]) == pytest.approx(gains["default", "mean"]["area"][0], abs=0.02)
    each = ", ".join(f"{gain:+.2f}" for gain in seeds["area"]).replace("-", "−")
    assert f"after 5 epochs, in each of three runs ({each})" in PROSE
    validation = {row["regime"]: row["against plain"] for row in REPORT["folds"] if row["form"] == "mean at 128"}
    for part in ("stage 1 alone", "stage 1 alone, size 1"):
        values = validation["jitter"][part]
        assert f"{np.mean(values):+.2f} ± {np.std(values, ddof=1):.2f}".replace("-", "−") in PROSE
    rows = {form: row for (regime, form), row in flowers.items() if regime == "default"}
    backbone = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()
    large, small, half = (multiplications(backbone, (3, side, side)) for side in (128, 112, 56))
    for form, expected in {"plain": large, "mean": small + half, "mean, stage 1 alone": small}.items():
        assert rows[form]["arithmetic"] == pytest.approx(expected / large, abs=1e-3)


def test_all_photographs_are_tested_once_with_the_fold_that_chose_apart():
    """Areas and differences are recomputed from the records of the runs, intervals with scipy."""
    forms = {(row["regime"], row["form"]): row for row in REPORT["folds"]}

    def record(regime, form, fold):
        name = Run(form, regime, forms[regime, form]["lr"], fold, True).name
        return json.loads((photographs_report.RESULTS / f"{name}.json").read_text())["test"]["area"]

    found = REPORT["every_photograph"]
    alone = {(row["regime"], row["form"]): row for row in found["fold 1"]}
    whole = {(row["regime"], row["form"]): row for row in found["all folds"]}
    compared = {key for key in whole if key in forms} - {("default", "plain"), ("jitter", "plain")}
    needed = ("plain longer", "one size per batch", "mean", "mean at 128")
    assert {*itertools.product(("default", "jitter"), needed)} <= compared
    for regime, form in compared:
        row = whole[regime, form]
        assert row["images"] == 4311 and alone[regime, form]["folds"] == [1]
        gains = [record(regime, form, fold) - record(regime, "plain", fold) for fold in range(5)]
        assert alone[regime, form]["against plain"]["area"][0] == pytest.approx(gains[1], abs=0.011)
        interval = scipy.stats.t.interval(0.95, 4, np.mean(gains), scipy.stats.sem(gains))
        assert row["against plain"]["area"] == pytest.approx([np.mean(gains), *interval], abs=0.05)
    lines = photographs_tables.of_every_photograph(REPORT["test"], found["fold 1"], found["all folds"])
    assert len(lines) == len(whole) == len(alone)
    stage1 = ("mean at 128, stage 1 alone", "mean at 128, distilled, stage 1 alone")
    for regime, form in [
        *itertools.product(("jitter",), ("mean", *stage1)),
        ("default", "mean"),
        ("default", stage1[0]),
    ]:
        pair = [whole[regime, form][f"against {other}"]["area"] for other in ("plain", "one size per batch")]
        said = [with_interval(gain, "-") for gain in pair]
        assert [gain[1] > 0 for gain in pair] == [regime == "jitter" or form == "mean", regime == "jitter"]
        assert all(gain in PROSE for gain in said)


def test_what_the_document_says_of_a_larger_image():
    rows = {
        (data, row["regime"], row["form"], tuple(round(factor, 2) for factor in row["factors"])): row
        for data, found in REPORT["image_sizes"].items()
        for row in found
    }

    def gain(regime, part, factors=(1.41, 1)):
        return rows["flowers", regime, "plain longer", factors]["against itself"][part]

    for part, end in (("small", "with scale jitter, in area"), ("area", "for 3.19 times the MACs")):
        first, second = (with_interval(gain(regime, part)) for regime in ("default", "jitter"))
        joined = f"{first} points on small objects with the crop alone and {second} {end}"
        assert (joined if part == "small" else f"{first} and {second}, {end}") in PROSE
    again = {
        part: [
            with_interval(rows["flowers", regime, "plain, trained again", (1.41, 1)]["against itself"][part])
            for regime in ("default", "jitter")
        ]
        for part in ("small", "area")
    }
    assert f"{' and '.join(again['small'])} points on small objects, in area {' and '.join(again['area'])}." in PROSE
    for factors, times in (((1.41, 1), 3.19), ((1.41,), 2.19)):
        costs = {rows["flowers", regime, "plain longer", factors]["arithmetic"] for regime in ("default", "jitter")}
        assert {round(cost, 2) for cost in costs} == {times}
    for regime in ("default", "jitter"):
        assert all(gain(regime, part)[1] > 0 for part in ("area", "small"))
        alone = {part: gain(regime, part, (1.41,)) for part in ("small", "large")}
        assert alone["small"][0] > gain(regime, "small")[0] and alone["large"][2] < 0
    for (data, *_, factors), row in rows.items():
        area = row["against itself"]["area"]
        if data == "imagenette":
            assert area[0] < 0 and row["against itself"]["small"][1] < 0  # "no combination gained in area, and none …"
        if 1.41 not in factors:
            assert area[0] < 0  # "lowers the area in each case"


@pytest.mark.parametrize("form, regime", [("plain at 112", "default"), ("plain", "default"), ("plain", "jitter")])
def test_the_document_says_how_much_two_trainings_differ(form, regime):
    rates = {(row["regime"], row["form"]): row["lr"] for row in REPORT["test_folds"]}
    lr = rates[regime, f"{form}, trained again"]
    areas = [
        [
            json.loads((photographs_report.RESULTS / f"{Run(name, regime, lr, fold, True).name}.json").read_text())
            for fold in (0, 2, 3, 4)
        ]
        for name in (form, f"{form}, trained again")
    ]
    first, again = ([record["test"]["area"] for record in records] for records in areas)
    *each, last = (f"{b - a:+.2f}" for a, b in zip(first, again, strict=True))
    (row,) = (row for row in REPORT["test"] if (row["regime"], row["form"]) == (regime, f"{form}, trained again"))
    mean, low, high = row[f"against {form}"]["area"]
    assert mean == pytest.approx(np.mean(np.subtract(again, first)), abs=0.02)
    words = f"{', '.join(each)} and {last}, together ".replace("-", "−")
    assert words + with_interval((mean, low, high)) in PROSE
    for ours in ("mean", "mean at 128, stage 1 alone") if form == "plain" else ():
        mean, high, low = (-end for end in row[f"against {ours}"]["area"])
        assert (low > 0) == ((ours, regime) != ("mean", "default"))
        assert with_interval((mean, low, high), "-") in PROSE


def test_why_targets_were_missed_is_what_was_measured():

    def top1(name, size):
        runs = (Run(name, "default", "1e-3", fold, True).name for fold in (0, 2, 3, 4))
        records = [json.loads((photographs_report.RESULTS / f"{run}.json").read_text()) for run in runs]
        return np.array([record["test"]["top1"][SIZES.index(size)] for record in records])

    half, one = (top1("mean", size) - top1("one size per batch", size) for size in (0.5, 1.0))
    folds = ["{:+.1f}, {:+.1f}, {:+.1f} and {:+.1f}".format(*each).replace("-", "−") for each in (half, one)]
    assert f"at size 0.5 averaging has {folds[0]} points over one size per batch (folds 0, 2, 3 and 4)" in PROSE
    assert f"at size 1 {folds[1]}." in PROSE
    flowers = {(row["regime"], row["form"]): row for row in REPORT["test"]}
    gain = {part: flowers["default", "mean"]["against mean, stage 1 alone"][part] for part in ("small", "large")}
    assert gain["small"][0] < 0 < gain["large"][1] and f"but {gain['large'][0]:+.2f} on large ones" in PROSE
    imagenette = {row["form"]: row for row in REPORT["imagenette_test"] if row["regime"] == "20 epochs"}
    alone, average, plain = (
        imagenette[form]["top1"][SIZES.index(0.5)] for form in ("mean, stage 1 alone", "mean", "plain")
    )
    said = f"stage 1 alone has {alone:.1f} %, the average {average:.1f} % and the plain network {plain:.1f} %"
    assert f"after 20 epochs, at size 0.5, {said}" in PROSE
    rows = {row["form"]: row for row in REPORT["imagenette_test"] if row["regime"] == "default"}
    behind = np.subtract(rows["mean"]["top1"], rows["one size per batch"]["top1"])
    assert behind.max() < 0 and abs(rows["mean"]["against one size per batch, averaged"]["area"][0]) < 0.1
    every = {(row["regime"], row["form"]): row for row in REPORT["every_photograph"]["all folds"]}
    stage1 = "mean at 128, stage 1 alone"
    for regime, form, other, inside in (
        ("jitter", stage1, "plain", True),
        ("default", stage1, "one size per batch", True),
        ("default", "mean", "one size per batch", False),
    ):
        mean, low, high = every[regime, form][f"against {other}"]["size 1"]
        assert (low > photographs_tables.NO_LOSS["flowers"]) == inside
        assert with_interval((mean, low, high)) in PROSE


def test_the_document_names_the_stronger_rival():
    """One size per batch with images that were resized twice, as the package did before: its figures stay on record."""
    results = ROOT / "benchmarks" / "results"
    before = json.loads((results / "photographs_resized_batches.json").read_text())["flowers"]
    now = REPORT["test"]
    areas = {row["regime"]: row["area"] for row in now if row["form"] == "one size per batch"}

    def ahead(form):
        gains = (before[regime]["ahead of it"][form]["area"] for regime in ("default", "jitter"))
        return " and ".join(with_interval(gain) for gain in gains)

    assert (
        f"areas of {before['default']['area']:.2f} and, with jitter, {before['jitter']['area']:.2f}; prepared as timm "
        f"does, {areas['default']:.2f} and {areas['jitter']:.2f}"
    ) in PROSE
    assert (
        f"averaging was ahead (intervals over images alone) by {ahead('mean')}, and stage 1 of averaging at 128 "
        "pixels by" in PROSE
    )
    assert f"128 pixels by {ahead('mean at 128, stage 1 alone')}." in PROSE


def test_the_summary_quotes_the_folds():
    rows = {row["regime"]: row for row in REPORT["folds"] if row["form"] == "mean"}
    compared = [rows["default"]["against plain"], rows["default"]["against one size per batch"]]
    spreads = [
        f"{np.mean(one['area']):.2f} ± {np.std(one['area'], ddof=1):.2f}"
        for one in (*compared, rows["jitter"]["against plain"])
    ]
    assert [len(one["folds"]) for one in compared] == [5, 5]
    assert all(f" {spread}" in PROSE for spread in spreads)
