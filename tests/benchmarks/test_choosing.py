"""docs/choosing.md: every figure in it is in the results file, and its gains are those of the stored logits."""

import itertools
import json
import re

import numpy as np
import pytest

from benchmarks import photographs_tables
from benchmarks.photographs import RESULTS, SIZES
from benchmarks.photographs_cost import relative
from benchmarks.photographs_records import LATER
from tests.helpers.paths import ROOT
from timm_wsms.evaluation.object_size.curve import area_weights

TEXT = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
REPORT = json.loads((ROOT / "benchmarks" / "results" / "photographs.json").read_text(encoding="utf-8"))
SCREENED = {row["form"]: row for row in REPORT["screening"] if row["regime"] == "default"}


def gain(form: str, part: str) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*REPORT["jitter_gains"][form][part]).replace("-", "−")


def of_distillation(every: dict[tuple[str, str, str], dict]) -> list[str]:
    """Statements of the section, from rows by data, regime and form."""
    alone, distilled = "mean at 128, stage 1 alone", "mean at 128, distilled, stage 1 alone"

    def said(row, other, part="area"):
        return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row[f"against {other}"][part]).replace("-", "−")

    def of_cifar10(part):
        rows = json.loads((ROOT / "benchmarks" / "results" / f"stage_one_cifar10{part}.json").read_text())["rows"]
        return [rows[name]["area"] for name in ("its stage 1 alone", "stage 1 alone, with distillation")]

    flowers, imagenette = (every[data, "jitter", distilled] for data in ("flowers", "Imagenette"))
    at_112, average = (every["flowers", "jitter", f"mean, distilled{part}"] for part in (", stage 1 alone", ""))
    before, after = of_cifar10("_jitter")
    changes = [flowers[f"against {alone}"], at_112["against mean, stage 1 alone"], imagenette[f"against {alone}"]]
    assert all(change["area"][0] > 0 for change in changes) and after > before
    assert all(change["area"][1] < 0 for change in changes)
    assert flowers["against plain"]["area"][1] > 0 and flowers["against one size per batch"]["area"][1] > 0
    _, low, high = average["against mean"]["area"]
    assert low < 0 < high and flowers["folds"] == at_112["folds"] == [0, 2, 3, 4]
    (each,) = (
        row["against plain"]["stage 1 alone"]
        for row in REPORT["imagenette_seeds"]
        if (row["regime"], row["form"]) == ("jitter", "mean at 128, distilled")
    )
    (without,) = (
        row["against plain"]["stage 1 alone"]
        for row in REPORT["imagenette_seeds"]
        if (row["regime"], row["form"]) == ("jitter", "mean at 128")
    )
    assert len(each) == 2 and each[0] > without[0] and each[1] < without[1]
    one, other = of_cifar10("")
    crop = [every["flowers", "default", form] for form in (distilled, "mean, distilled, stage 1 alone")]
    assert [row["folds"] for row in crop] == [[0], [0]]
    return [
        f"on flowers by {said(flowers, alone)} points of area when trained at 128 pixels and "
        f"{said(at_112, 'mean, stage 1 alone')} at 112, on Imagenette by {said(imagenette, alone)} (two runs, of which "
        f"one gained and one lost), and on "
        f"CIFAR-10 by {after - before:+.2f} (one run).",
        f"then gains {said(flowers, 'plain')} points of area over the plain network and "
        f"{said(flowers, 'one size per batch')} over one size per batch, and shows no significant loss on large "
        "objects, "
        f"{said(flowers, 'plain', 'large')}.",
        f"shows no significant change on flowers at 112 pixels, {said(average, 'mean')}.",
        f"it changes the area of stage 1 by {said(crop[0], alone)} points at 128 pixels and by "
        f"{said(crop[1], 'mean, stage 1 alone')} at 112 (one run",
        f"it raises that of stage 1 on CIFAR-10 from {one:.2f} to {other:.2f}, with no loss at size 1",
        f"changes it on Imagenette by {said(every['Imagenette', 'default', distilled], alone)} (one run).",
    ]


def statements() -> list[str]:
    tested = {(row["regime"], row["form"]): row for row in REPORT["test"]}
    rates, gains = SCREENED["mean"]["area_by_learning_rate"], REPORT["jitter_gains"]
    assert gains["plain"]["images"] == gains["mean"]["images"] == tested["jitter", "mean"]["images"]
    every = {("flowers", row["regime"], row["form"]): row for row in REPORT["test"]}
    imagenette = [row for row in REPORT["imagenette_test"] if row["regime"] != LATER]  # one way to train less
    every |= {("Imagenette", row["regime"], row["form"]): row for row in imagenette}
    folds = {(row["regime"], row["form"]): row for row in REPORT["folds"]}

    def spread(part: str) -> str:
        values = folds["jitter", "mean at 128"]["against plain"][part]
        return f"{np.mean(values):+.2f} ± {np.std(values, ddof=1):.2f}".replace("-", "−")

    rival, alone = "one size per batch", "mean at 128, stage 1 alone"
    at_equal_cost = [row for row in every.values() if row["form"] == alone]
    assert len(at_equal_cost) == 5

    def span(part: str, other: str = "plain") -> str:
        found = sorted(row[f"against {other}"][part] for row in at_equal_cost)
        return f"{found[0][0]:+.2f} to {found[-1][0]:+.2f}"

    def significant(part: str, other: str = "plain") -> set[tuple[str, str]]:
        """Data and regime of the experiments with several runs whose gain is significant."""
        several = {key[:2]: row for key, row in every.items() if key[2] == alone and len(row["folds"]) > 1}
        assert len(several) == 4
        return {key for key, row in several.items() if row[f"against {other}"][part][1] > 0}

    assert significant("area") == {("flowers", "jitter"), ("Imagenette", "jitter")}
    assert len(significant("size 1")) == 3
    assert significant("area", rival) == {("flowers", "jitter")}

    def longer(data: str, regime: str, form: str, part: str = "area") -> list[float]:
        return [-end for end in every[data, regime, "plain longer"][f"against {form}"][part]]

    for form, regime in itertools.product(("mean", alone), ("default", "jitter")):
        _, high, low = longer("flowers", regime, form)
        assert low > 0 if (form, regime) == ("mean", "default") else low < 0 < high
    for regime, part, ahead in (
        *(("default", "area", False), ("jitter", "area", False)),
        *(("20 epochs", "area", True), ("20 epochs", "small", True), ("20 epochs", "large", False)),
    ):
        _, high, low = longer("Imagenette", regime, alone, part)
        assert low > 0 if ahead else high < 0
    consistent = tested["default", "mean, consistent"]
    mean, low, high = consistent["against mean"]["area"]
    assert consistent["folds"] == [0, 2, 3, 4] and low < 0 < high
    with_jitter = tested["jitter", "mean, consistent"]["against mean"]["area"]
    assert with_jitter[1] < 0 < with_jitter[2]
    differs = (
        f"it differs from averaging by {mean:+.2f} [{low:+.2f}, {high:+.2f}] points of area, which is not significant; "
        "with scale jitter by {:+.2f} [{:+.2f}, {:+.2f}].".format(*with_jitter)
    )
    trained = {regime: every["Imagenette", regime, "plain"] for regime in ("default", "jitter")}
    mean, high, low = longer("flowers", "default", "mean")
    equal_cost = [
        differs.replace("-", "−"),
        f"{span('area')} points of area, {span('small')} on small objects and {span('size 1')} at size 1.",
        f"it gains {span('area', rival)} points of area, significantly on flowers with scale jitter.",
        f"is smaller, {spread('stage 1 alone')} over five folds, and {spread('stage 1 alone, size 1')} at size 1.",
        f"takes {every['flowers', 'default', 'mean at 128']['arithmetic']:.2f} times the MACs at 128 pixels, "
        f"{every['flowers', 'default', 'mean']['arithmetic']:.2f} times at 112 (flowers)",
        f"averaging at 112 pixels gains {mean:.2f} [{low:+.2f}, {high:+.2f}] points of area over a plain network with",
        f"The gain of stage 1, {longer('flowers', 'default', alone)[0]:.2f}, varies too much",
        f"the gains that are left, {longer('flowers', 'jitter', 'mean')[0]:.2f} for averaging at 112 pixels and "
        f"{longer('flowers', 'jitter', alone)[0]:.2f} for stage 1, are not significant either.",
        "area from {:.2f} to {:.2f}, but".format(*(row["area"] for row in trained.values())),
        "size 1 from {:.2f} to {:.2f} %".format(*(row["size 1"] for row in trained.values())),
    ]
    (enlarged,) = (
        row
        for row in REPORT["image_sizes"]["flowers"]
        if (row["regime"], row["form"]) == ("jitter", "plain longer") and row["factors"] == [2**0.5, 1.0]
    )
    of_small = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*enlarged["against itself"]["small"]).replace("-", "−")
    assert enlarged["against itself"]["small"][1] > 0 and len(enlarged["folds"]) == 4
    three = relative("plain", (1, 91 / 128, 0.5))  # 1.41 × 91 = 128, 91 and 0.71 × 91 = 64 pixels
    return [
        f"at 91 pixels, 0.71 of the plain network's 128, it would take × {three:.2f}.",
        f"over the image and 1.41 times its side gains {of_small} points on small objects, for "
        f"{enlarged['arithmetic']:.2f} times the MACs",
        *of_distillation(every),
        *equal_cost,
        f"EfficientNet-Lite0 on flowers; {tested['jitter', 'mean']['images']:,} test images;",
        f"{gain('plain', 'area')} points of area for the plain one and {gain('mean', 'area')} for averaging",
        f"at size 1 {gain('plain', 'size 1')} and {gain('mean', 'size 1')} (the same {gains['plain']['images']:,} test",
        f"evaluated on its {SCREENED['plain']['images']} validation images.",
        "The plain network has an area of "
        f"{SCREENED['plain']['area']:.2f} there, averaging {SCREENED['mean']['area']:.2f}",
        f"with half and with twice its learning rate, averaging itself has {rates['5e-4']:.2f} and {rates['2e-3']:.2f}",
    ]


def test_every_figure_is_in_the_results_file():
    text = " ".join(line for line in TEXT.splitlines() if not line.startswith("|"))  # tables are compared elsewhere
    text = " ".join(text.split())
    for statement in (" ".join(words.split()) for words in statements()):
        assert statement in text, statement
        text = text.replace(statement, "")
    left = re.sub(r"`[^`]*`|sizes from 0.35 to 2.83|at 0.875 of the plain|95 %", "", text)
    assert re.findall(r"\d+\.\d+", left) == []


def test_all_forms_that_were_tried_are_in_the_table():
    """But those that the first table or another document shows: the plain network's own sizes, and the form itself."""
    elsewhere = {"plain", "mean", "plain at 112", "plain at 96", "plain at 64", "mean at 128", "mean, lite1"}
    elsewhere |= {"plain at 80", "plain, trained again", "plain at 112, trained again", "mean at 128, distilled"}
    assert SCREENED.keys() - elsewhere == photographs_tables.TRIED.keys() & SCREENED.keys()
    assert all(SCREENED[form]["against_mean"]["area"][0] < 0 for form in photographs_tables.TRIED if form in SCREENED)
    assert len(photographs_tables.of_tried(REPORT["screening"])) == len(SCREENED.keys() - elsewhere)


def test_the_forms_that_validation_images_choose_are_those_that_it_says():
    assert max(SCREENED.values(), key=lambda row: row["area"])["form"] == "mean"
    five = [row for row in REPORT["folds"] if row["regime"] == "jitter" and len(row["folds"]) == 5]
    assert len(five) > 5 and max(five, key=lambda row: np.mean(row["area"]))["form"] == "mean at 128, distilled"


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
