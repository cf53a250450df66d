"""The runs on photographs: their settings are the training script's, their figures those of numpy."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats
import timm

from benchmarks import photographs, photographs_data, photographs_records, photographs_report, photographs_tables
from benchmarks.photographs import FORMS, RECIPES, REGIMES, SIZES, Run
from tests.helpers.paths import ROOT
from timm_wsms.evaluation.cost import multiplications
from timm_wsms.training.settings import parse

RUNS = [
    Run(form, regime, "1e-3", 3, True, data) for data, forms in FORMS.items() for form in forms for regime in REGIMES
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_training_script_takes_the_settings_of_a_run(run):
    settings = parse(["--recipe", str(ROOT / RECIPES[run.data]), *run.settings()])
    form = FORMS[run.data][run.form]
    assert settings.model == form.model and timm.is_model(form.model)
    assert settings.data.input_size == [3, form.side, form.side]
    assert settings.lr == 1e-3 and settings.seed == 3
    assert bool(settings.data.scale_jitter) == (run.regime == "jitter")
    assert ("pretrained_cfg_overlay" in settings.model_kwargs) == bool(form.weights)
    assert (settings.stage_loss == 1) == run.form.startswith("mean")
    usual = {"flowers": 4, "imagenette": 5}[run.data] + (run.form == "plain longer")
    long = 25 if run.form == "plain longer" else 20
    assert settings.epochs == settings.eval_every == (long if run.regime == "20 epochs" else usual)
    assert settings.precision == {"flowers": "no", "imagenette": "bf16"}[run.data]


def test_every_record_is_a_run_of_run_all_and_the_other_way_round():
    text = (ROOT / "benchmarks" / "run_all.sh").read_text()
    named = set()
    for line in text.partition("<<'RUNS'\n")[2].partition("\nRUNS\n")[0].splitlines():
        data, form, regime, lr, *folds = line.split("|")
        for tested, of_split in enumerate(folds):
            named |= {Run(form, regime, lr, int(fold), bool(tested), data).name for fold in of_split.split()}
    borders = ("_reflect", "_blur")  # of benchmarks/photographs_borders.py
    found = {path.stem for path in photographs_report.RESULTS.glob("*.json") if not path.stem.endswith(borders)}
    assert len(named) > 100 and named == found


def test_records_of_more_image_sizes_have_their_areas_and_stay_small():
    found = {}
    for path in photographs_report.RESULTS.glob("*_tested.json"):
        figures = json.loads(path.read_text())
        more = photographs.more_of(path)
        if not photographs.is_plain(figures["form"]):
            assert not more.exists()
            continue
        logits, labels = (photographs.with_more(path)[f"test_{part}"] for part in ("logits", "labels"))
        assert (len(logits) > len(photographs.TESTED_FACTORS)) == more.exists()
        assert len(logits) <= len(photographs.factors_of(figures["form"]))
        assert figures["test_stages"] == [photographs.areas(stage, labels) for stage in logits.astype(float)]
        found[path.stem] = len(logits)
    assert max(found.values()) > 4
    sizes = [path.stat().st_size for path in photographs_report.RESULTS.glob("*.npz")]
    assert len(sizes) > 100 and max(sizes) < 2e6


def test_each_run_has_a_name_of_its_own():
    runs = [*RUNS, *(Run(run.form, run.regime, "2e-3", 0, False, run.data) for run in RUNS)]
    assert len({run.name for run in runs}) == len(runs)
    assert Run("mean, distilled", "default", "1e-3", 0, False).name == "mean-distilled_default_lr1e-3_fold0"


@pytest.fixture
def hits():
    """Whether each of 50 images is recognized at each size: bool (sizes, images)."""
    return np.random.default_rng(0).random((len(SIZES), 50)) < np.linspace(0.2, 0.9, len(SIZES))[:, None]


def test_areas_are_those_of_the_trapezoidal_rule(hits):
    logits = np.where(hits[..., None], [2.0, 1.0], [1.0, 2.0])  # class 0 wins where there is a hit
    found = photographs.areas(logits, np.zeros(50, int))
    top1, places = 100 * hits.mean(1), np.log(SIZES)
    for name, part in {"area": slice(None), "area_small": slice(0, 4), "area_large": slice(3, None)}.items():
        area = np.trapezoid(top1[part], places[part]) / (places[part][-1] - places[part][0])
        assert found[name] == pytest.approx(area, abs=0.006)
    assert found["top1"] == pytest.approx(top1, abs=0.006)


def test_stages_are_averaged_and_images_compared_in_the_order_of_their_index(hits):
    rng = np.random.default_rng(1)
    order, labels = rng.permutation(50), rng.integers(0, 3, 50)
    stages = rng.normal(size=(2, len(SIZES), 50, 3)).astype(np.float16)
    arrays = {"test_logits": stages[:, :, order], "test_labels": labels[order], "test_index": order}
    for chosen in ([0], [0, 1]):
        found = photographs_report.correct(arrays, "test", chosen)
        for size, image in itertools.product(range(len(SIZES)), range(50)):
            of_stages = [stages[stage, size, image].astype(float) for stage in chosen]
            assert found[size, image] == (np.mean(of_stages, axis=0).argmax() == labels[image])
    compared = photographs_report.compared([hits], [np.ones_like(hits)])
    at_one = 100 * (1 - hits[SIZES.index(1.0)].mean())
    assert compared["size 1"][0] == pytest.approx(at_one, abs=0.006)
    assert compared["size 1"][1] < compared["size 1"][0] < compared["size 1"][2]


def test_the_weights_are_those_that_the_document_names():
    report = json.loads((ROOT / "benchmarks" / "results" / "photographs_weights.json").read_text())
    for name in photographs_data.SIZES:
        assert report[f"{name}_largest_logit_difference"] <= photographs_data.TOLERANCE
    words = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    assert (
        f"recognizes {report['lite0_imagenette_validation_top1']:.2f} % of Imagenette's {report['images']:,}" in words
    )


def test_the_document_has_the_areas_of_all_learning_rates():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    report = json.loads((ROOT / "benchmarks" / "results" / "photographs.json").read_text())
    words, found = " ".join(text.split()), [*report["screening"], *report["imagenette"]]
    several = [photographs_tables.spread(row) for row in found if len(row["area_by_learning_rate"]) > 1]
    assert len(several) >= 5 and [spread for spread in several if spread not in words] == []


def test_the_folds_are_those_of_the_records():
    """Differences are recomputed from the areas in the records of the runs."""
    report = json.loads((ROOT / "benchmarks" / "results" / "photographs.json").read_text())
    rows = {(row["regime"], row["form"]): row for row in report["folds"]}
    for row in rows.values():
        assert [area_of(row, fold) for fold in row["folds"]] == row["area"]
        for name in ("plain", "one size per batch"):
            if against := row.get(f"against {name}"):
                other = rows[row["regime"], name]
                expected = [area_of(row, fold) - area_of(other, fold) for fold in against["folds"]]
                assert against["area"] == pytest.approx(expected, abs=0.011)


def test_the_words_of_the_document_say_what_was_measured():
    """What is called a gain, a loss or not significant is one; the figures are compared in another file."""
    report = json.loads((ROOT / "benchmarks" / "results" / "photographs.json").read_text())
    words = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    flowers, imagenette = (
        {(row["regime"], row["form"]): row for row in report[name]} for name in ("test", "imagenette_test")
    )

    def said(gain):
        return "{:.2f} [{:+.2f}, {:+.2f}]".format(*gain).replace("-", "−")

    alone = "mean at 128, stage 1 alone"
    for form, regime in itertools.product(("mean", "mean, stage 1 alone", alone), ("default", "jitter")):
        gain = flowers[regime, form]["against plain"]["area"]
        assert (gain[1] > 0) == ((form, regime) != (alone, "default")) and said(gain) in words
        gain = flowers[regime, form]["against one size per batch"]["area"]
        assert (gain[1] > 0) == (regime == "jitter") and said(gain) in words
    for other in ("plain", "one size per batch"):  # "all of stage 1's gain is on small objects"
        assert flowers["jitter", alone][f"against {other}"]["large"][0] < 0
    assert flowers["jitter", "mean"]["against plain"]["large"][1] > 0
    for form in ("mean", "mean, stage 1 alone", alone):
        _, low, high = flowers["jitter", form]["against plain"]["size 1"]
        assert low < 0 < high
    assert flowers["jitter", "mean"]["images"] == 3448 and "on 3,448 test images" in words
    gains = {key: imagenette[key]["against plain"] for key in imagenette if "against plain" in imagenette[key]}
    for regime, part in itertools.product(("20 epochs", "jitter", "default"), ("area", "size 1")):
        assert said(gains[regime, alone][part]) in words
    assert gains["default", alone]["small"][1] > 0 > gains["default", alone]["large"][2]
    assert gains["20 epochs", alone]["area"][1] > 0 and gains["jitter", alone]["area"][1] > 0
    (narrow,) = (r for r in report["screening"] if (r["regime"], r["form"]) == ("narrow", "mean"))
    area, size_1 = (said(narrow["against_plain"][part]) for part in ("area", "size 1"))
    assert f"averaging gains +{area} points of area and +{size_1} at size 1 over the plain network (one run" in words
    at_one = "from {:.2f} to {:.2f} %".format(
        *(imagenette[regime, "plain"]["size 1"] for regime in ("default", "jitter"))
    )
    assert f"lowers its accuracy at size 1, {at_one}" in words
    assert gains["20 epochs", "mean at 128"]["small"][2] < 0.02 and gains["20 epochs", "mean at 128"]["large"][1] > 0
    assert gains["default", "mean"]["area"][2] < 0 and gains["20 epochs", "mean"]["area"][2] < 0
    screened = {(row["regime"], row["form"]): row["area"] for row in report["imagenette"]}
    at_128 = [screened[regime, "mean at 128"] for regime in (photographs_records.LATER, "default")]
    later, of_plain = gains[photographs_records.LATER, alone], screened[photographs_records.LATER, "plain"]
    assert (
        f"the plain network has an area of {of_plain:.2f} on these images, averaging "
        f"at 128 pixels {at_128[0]:.2f} ({at_128[1]:.2f} with 0.004). At that rate stage 1 of the latter gains "
        f"+{said(later['area'])} points of area on the test images, and +{said(later['size 1'])} at size 1." in words
    )
    longer = {regime: imagenette[regime, "plain longer"] for regime in ("default", "jitter")}
    assert all(row[f"against {alone}"]["area"][1] > 0 for row in longer.values())
    (seeds,) = (row["against plain"] for row in report["imagenette_seeds"] if row["form"] == "mean")
    assert seeds["folds"] == imagenette["default", "mean"]["folds"] == imagenette["default", "plain"]["folds"]
    assert np.mean(seeds["area"]) == pytest.approx(gains["default", "mean"]["area"][0], abs=0.02)
    each = ", ".join(f"{gain:+.2f}" for gain in seeds["area"]).replace("-", "−")
    assert f"after 5 epochs, in each of three runs ({each})" in words
    validation = {row["regime"]: row["against plain"] for row in report["folds"] if row["form"] == "mean at 128"}
    for part in ("stage 1 alone", "stage 1 alone, size 1"):
        values = validation["jitter"][part]
        assert f"{np.mean(values):+.2f} ± {np.std(values, ddof=1):.2f}".replace("-", "−") in words
    rows = {form: row for (regime, form), row in flowers.items() if regime == "default"}
    backbone = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()
    large, small, half = (multiplications(backbone, (3, side, side)) for side in (128, 112, 56))
    for form, expected in {"plain": large, "mean": small + half, "mean, stage 1 alone": small}.items():
        assert rows[form]["arithmetic"] == pytest.approx(expected / large, abs=1e-3)


def test_all_photographs_are_tested_once_with_the_fold_that_chose_apart():
    """Areas and differences are recomputed from the records of the runs, intervals with scipy."""
    report = json.loads((photographs_report.RESULTS.parent / "photographs.json").read_text())
    forms = {(row["regime"], row["form"]): row for row in report["folds"]}

    def record(regime, form, fold):
        name = Run(form, regime, forms[regime, form]["lr"], fold, True).name
        return json.loads((photographs_report.RESULTS / f"{name}.json").read_text())["test"]["area"]

    found = report["every_photograph"]
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
    lines = photographs_tables.of_every_photograph(report["test"], found["fold 1"], found["all folds"])
    assert len(lines) == len(whole) == len(alone)
    text = prose_of_results()
    stage1 = ("mean at 128, stage 1 alone", "mean at 128, distilled, stage 1 alone")
    for regime, form in [
        *itertools.product(("jitter",), ("mean", *stage1)),
        ("default", "mean"),
        ("default", stage1[0]),
    ]:
        pair = [whole[regime, form][f"against {other}"]["area"] for other in ("plain", "one size per batch")]
        said = ["{:.2f} [{:+.2f}, {:+.2f}]".format(*gain).replace("-", "−") for gain in pair]
        assert [gain[1] > 0 for gain in pair] == [regime == "jitter" or form == "mean", regime == "jitter"]
        assert all(gain in text for gain in said)


def test_what_the_document_says_of_a_larger_image():
    text = " ".join((ROOT / "docs" / "results.md").read_text().split())
    report = json.loads((photographs_report.RESULTS.parent / "photographs.json").read_text())
    rows = {
        (data, row["regime"], row["form"], tuple(round(factor, 2) for factor in row["factors"])): row
        for data, found in report["image_sizes"].items()
        for row in found
    }

    def gain(regime, part, factors=(1.41, 1)):
        return rows["flowers", regime, "plain longer", factors]["against itself"][part]

    def said(found):
        return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*found).replace("-", "−")

    for part, end in (("small", "with scale jitter, in area"), ("area", "for 3.19 times the MACs")):
        first, second = (said(gain(regime, part)) for regime in ("default", "jitter"))
        joined = f"{first} points on small objects with the crop alone and {second} {end}"
        assert (joined if part == "small" else f"{first} and {second}, {end}") in text
    usual = ("default", "jitter")
    again = [
        [said(rows["flowers", regime, "plain, trained again", (1.41, 1)]["against itself"][part]) for regime in usual]
        for part in ("small", "area")
    ]
    assert f"{' and '.join(again[0])} points on small objects, in area {' and '.join(again[1])}." in text
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


def prose_of_results():
    lines = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    return " ".join(" ".join(line for line in lines if not line.startswith("|")).split())


@pytest.mark.parametrize("form, regime", [("plain at 112", "default"), ("plain", "default"), ("plain", "jitter")])
def test_the_document_says_how_much_two_trainings_differ(form, regime):
    text = prose_of_results()
    report = json.loads((photographs_report.RESULTS.parent / "photographs.json").read_text())
    rates = {(row["regime"], row["form"]): row["lr"] for row in report["test_folds"]}
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
    (row,) = (row for row in report["test"] if (row["regime"], row["form"]) == (regime, f"{form}, trained again"))
    mean, low, high = row[f"against {form}"]["area"]
    assert mean == pytest.approx(np.mean(np.subtract(again, first)), abs=0.02)
    words = f"{', '.join(each)} and {last}, together {mean:+.2f} [{low:+.2f}, {high:+.2f}]"
    assert words.replace("-", "−") in text
    for ours in ("mean", "mean at 128, stage 1 alone") if form == "plain" else ():
        mean, high, low = (-end for end in row[f"against {ours}"]["area"])
        assert (low > 0) == ((ours, regime) != ("mean", "default"))
        assert f"{mean:.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−") in text


def test_why_targets_were_missed_is_what_was_measured():
    text = prose_of_results()
    report = json.loads((photographs_report.RESULTS.parent / "photographs.json").read_text())

    def top1(name, size):
        runs = (Run(name, "default", "1e-3", fold, True).name for fold in (0, 2, 3, 4))
        records = [json.loads((photographs_report.RESULTS / f"{run}.json").read_text()) for run in runs]
        return np.array([record["test"]["top1"][SIZES.index(size)] for record in records])

    half, one = (top1("mean", size) - top1("one size per batch", size) for size in (0.5, 1.0))
    folds = ["{:+.1f}, {:+.1f}, {:+.1f} and {:+.1f}".format(*each).replace("-", "−") for each in (half, one)]
    assert f"at size 0.5 averaging has {folds[0]} points over one size per batch (folds 0, 2, 3 and 4)" in text
    assert f"at size 1 {folds[1]}." in text
    flowers = {(row["regime"], row["form"]): row for row in report["test"]}
    gain = {part: flowers["default", "mean"]["against mean, stage 1 alone"][part] for part in ("small", "large")}
    assert gain["small"][0] < 0 < gain["large"][1] and f"but {gain['large'][0]:+.2f} on large ones" in text
    imagenette = {row["form"]: row for row in report["imagenette_test"] if row["regime"] == "20 epochs"}
    alone, average, plain = (
        imagenette[form]["top1"][SIZES.index(0.5)] for form in ("mean, stage 1 alone", "mean", "plain")
    )
    said = f"stage 1 alone has {alone:.1f} %, the average {average:.1f} % and the plain network {plain:.1f} %"
    assert f"after 20 epochs, at size 0.5, {said}" in text
    rows = {row["form"]: row for row in report["imagenette_test"] if row["regime"] == "default"}
    behind = np.subtract(rows["mean"]["top1"], rows["one size per batch"]["top1"])
    assert behind.max() < 0 and abs(rows["mean"]["against one size per batch, averaged"]["area"][0]) < 0.1
    every = {(row["regime"], row["form"]): row for row in report["every_photograph"]["all folds"]}
    stage1 = "mean at 128, stage 1 alone"
    for regime, form, other, inside in (
        ("jitter", stage1, "plain", True),
        ("default", stage1, "one size per batch", True),
        ("default", "mean", "one size per batch", False),
    ):
        mean, low, high = every[regime, form][f"against {other}"]["size 1"]
        assert (low > photographs_tables.NO_LOSS["flowers"]) == inside
        assert f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−") in text


def test_the_document_names_the_stronger_rival():
    """One size per batch with images that were resized twice, as the package did before: its figures stay on record."""
    results = ROOT / "benchmarks" / "results"
    words = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    before = json.loads((results / "photographs_resized_batches.json").read_text())["flowers"]
    now = json.loads((results / "photographs.json").read_text())["test"]
    areas = {row["regime"]: row["area"] for row in now if row["form"] == "one size per batch"}

    def ahead(form):
        gains = (before[regime]["ahead of it"][form]["area"] for regime in ("default", "jitter"))
        return " and ".join("{:+.2f} [{:+.2f}, {:+.2f}]".format(*gain) for gain in gains).replace("-", "−")

    assert (
        f"areas of {before['default']['area']:.2f} and, with jitter, {before['jitter']['area']:.2f}; prepared as timm "
        f"does, {areas['default']:.2f} and {areas['jitter']:.2f}"
    ) in words
    assert (
        f"averaging was ahead (intervals over images alone) by {ahead('mean')}, and stage 1 of averaging at 128 "
        "pixels by" in words
    )
    assert f"128 pixels by {ahead('mean at 128, stage 1 alone')}." in words


def test_the_summary_quotes_the_folds():
    folds = json.loads((ROOT / "benchmarks" / "results" / "photographs.json").read_text())["folds"]
    rows = {row["regime"]: row for row in folds if row["form"] == "mean"}
    compared = [rows["default"]["against plain"], rows["default"]["against one size per batch"]]
    spreads = [
        f"{np.mean(one['area']):.2f} ± {np.std(one['area'], ddof=1):.2f}"
        for one in (*compared, rows["jitter"]["against plain"])
    ]
    assert [len(one["folds"]) for one in compared] == [5, 5]
    words = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    assert all(f" {spread}" in words for spread in spreads)


def area_of(row, fold):
    name = Run(row["form"], row["regime"], row["lr"], fold, False).name
    return json.loads((photographs_report.RESULTS / f"{name}.json").read_text())["validation"]["area"]


def test_a_record_of_test_images_joins_that_of_its_network(monkeypatch, tmp_path):
    """The test images of a network that has no validation record are left out: nothing says how it was chosen."""
    monkeypatch.setattr(photographs_records, "RESULTS", tmp_path)
    names = {"b": "validation", "b_tested": "test", "a_tested": "test"}
    for place, (name, split) in enumerate(names.items()):
        (tmp_path / f"{name}.json").write_text(json.dumps({"form": name[0], split: {"area": float(place)}}))
        np.savez(tmp_path / f"{name}.npz", **{f"{split}_labels": np.full(2, place)})
    found = photographs_records.read_records()
    assert list(found) == ["b"]
    figures, arrays = found["b"]
    assert figures == {"form": "b", "validation": {"area": 0.0}, "test": {"area": 1.0}}
    assert {name: values.tolist() for name, values in arrays.items()} == {
        "validation_labels": [0, 0],
        "test_labels": [1, 1],
    }


def test_what_is_tested_pools_the_folds_with_the_learning_rate_of_the_first():
    rng = np.random.default_rng(2)

    def one(form, lr, fold, area):
        logits = rng.normal(size=(2, len(SIZES), 30, 3)).astype(np.float16)
        arrays = {"test_logits": logits, "test_labels": rng.integers(0, 3, 30), "test_index": rng.permutation(30)}
        figures = {"validation": {"area": area}, "test": {"area": 0.0}, "regime": "default", "multiplications": 1}
        return {"form": form, "lr": lr, "fold": fold, "arrays": arrays, **figures}

    plain = [one("plain", "1e-3", 0, 60.0), one("plain", "2e-3", 0, 61.0), one("plain", "2e-3", 2, 50.0)]
    mean = [one("mean", "1e-3", fold, 62.0) for fold in (0, 1, 2)]  # the test images of fold 1 chose the rates
    rows = {row["form"]: row for row in photographs_report.tested([*plain, *mean])}
    assert list(rows) == ["plain", "plain, averaged", "mean", "mean, stage 1 alone"]

    def right(runs, stages):
        return np.concatenate(
            [
                r["arrays"]["test_logits"][stages].astype(float).mean(0).argmax(-1) == r["arrays"]["test_labels"]
                for r in runs
            ],
            axis=1,
        )

    for name, runs, stages in (
        ("plain", plain[1:], [0]),
        ("mean", mean[::2], [0, 1]),
        ("mean, stage 1 alone", mean[::2], [0]),
    ):
        expected = 100 * right(runs, stages).mean(1)
        assert rows[name]["top1"] == pytest.approx(expected, abs=0.006) and rows[name]["images"] == 60
    difference = rows["mean"]["area"] - rows["plain"]["area"]
    assert rows["mean"]["against plain"]["area"][0] == pytest.approx(difference, abs=0.02)
    assert "against plain" not in rows["plain"]


def test_image_sizes_are_averaged_and_compared_with_the_images_own():
    """Only of runs whose records have the larger image, and of forms that were evaluated there."""
    rng = np.random.default_rng(6)

    def one(form, fold, factors):
        logits = rng.normal(size=(factors, len(SIZES), 50, 3)).astype(np.float16)
        arrays = {"test_logits": logits, "test_labels": rng.integers(0, 3, 50), "test_index": rng.permutation(50)}
        figures = {"validation": {"area": 60.0}, "test": {"area": 0.0}, "regime": "default", "multiplications": 1}
        return {"form": form, "lr": "2e-3", "fold": fold, "arrays": arrays, **figures}

    with_larger = [one("plain", fold, 4) for fold in (0, 2)]  # 1, 0.5, 0.71, 1.41 of the image
    others = [one("plain", 3, 3), one("plain longer", 0, 3), one("one size per batch", 0, 5), one("mean", 0, 2)]
    rows = photographs_report.at_image_sizes([*with_larger, *others])
    assert {(row["form"], *row["folds"], row["images"]) for row in rows} == {("plain", 0, 2, 100)}
    places = np.log(SIZES)

    def area(stages):
        hits = [
            run["arrays"]["test_logits"][stages].astype(float).mean(0).argmax(-1) == run["arrays"]["test_labels"]
            for run in with_larger
        ]
        return 100 * np.trapezoid(np.concatenate(hits, 1).mean(1), places) / (places[-1] - places[0])

    by_factors = {tuple(round(factor, 2) for factor in row["factors"]): row for row in rows}
    expected = {(1.41,): [3], (1.41, 1): [3, 0], (1.41, 1, 0.71): [3, 0, 2], (1, 0.71): [0, 2], (1, 0.5): [0, 1]}
    assert by_factors.keys() == expected.keys()
    for factors, stages in expected.items():
        row = by_factors[factors]
        assert row["area"] == pytest.approx(area(stages), abs=0.006)
        mean, low, high = row["against itself"]["area"]
        assert mean == pytest.approx(area(stages) - area([0]), abs=0.006) and low < mean < high
        assert row["arithmetic"] == pytest.approx(
            sum(factor**2 for factor in factors),
            rel=0.12,  # odd sides are rounded up in every strided layer
        )


def test_runs_that_share_their_test_images_are_averaged_image_by_image():
    """On Imagenette a fold is a seed: more seeds are no more images."""
    rng = np.random.default_rng(4)

    def one(form, fold, area):
        logits = rng.normal(size=(2, len(SIZES), 40, 3)).astype(np.float16)
        arrays = {"test_logits": logits, "test_labels": np.arange(40) % 3, "test_index": np.arange(40)}
        figures = {"validation": {"area": area}, "test": {"area": 0.0}, "regime": "default", "multiplications": 1}
        return {"data": "imagenette", "form": form, "lr": "2e-3", "fold": fold, "arrays": arrays, **figures}

    runs = {form: [one(form, fold, 60.0) for fold in (0, 1)] for form in ("plain", "mean")}
    rows = {row["form"]: row for row in photographs_report.tested([*runs["plain"], *runs["mean"]], "imagenette")}
    shares = {}
    for form, stages in (("plain", [0]), ("mean", [0, 1])):
        hits = [
            run["arrays"]["test_logits"][stages].astype(float).mean(0).argmax(-1) == run["arrays"]["test_labels"]
            for run in runs[form]
        ]
        shares[form] = np.mean(hits, 0)  # (sizes, images): 0, 0.5 or 1
        assert rows[form]["images"] == 40 and rows[form]["folds"] == [0, 1]
        assert rows[form]["top1"] == pytest.approx(100 * shares[form].mean(1), abs=0.006)
    places = np.log(SIZES)
    gains = 100 * np.trapezoid(shares["mean"] - shares["plain"], places, axis=0) / (places[-1] - places[0])
    mean, low, high = rows["mean"]["against plain"]["area"]
    assert mean == pytest.approx(gains.mean(), abs=0.006)
    assert low < mean < high
