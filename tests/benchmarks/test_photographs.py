"""The runs on photographs: their settings are the training script's, their figures those of numpy."""

import itertools
import json

import numpy as np
import pytest
import timm

from benchmarks import photographs, photographs_records, photographs_report, photographs_tables
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
    compared = photographs_report.compared(hits, np.ones_like(hits))
    at_one = 100 * (1 - hits[SIZES.index(1.0)].mean())
    assert compared["size 1"][0] == pytest.approx(at_one, abs=0.006)
    assert compared["size 1"][1] < compared["size 1"][0] < compared["size 1"][2]


def test_the_document_has_the_table_of_the_results_file():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks" / "results" / "photographs.json").read_text())["screening"]
    lines = photographs_tables.of_screening(found)
    assert len(lines) > len(found) > 4
    assert [line for line in lines if line not in text.splitlines()] == []
    words = " ".join(text.split())
    assert all(photographs_tables.spread(row) in words for row in found if len(row["area_by_learning_rate"]) > 1)


def test_the_document_has_the_folds_of_the_records():
    """Differences are recomputed from the areas in the records of the runs."""
    report = json.loads((ROOT / "benchmarks" / "results" / "photographs.json").read_text())
    lines = photographs_tables.of_folds(report["folds"])
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 3 and [line for line in lines if line not in text] == []
    rows = {(row["regime"], row["form"]): row for row in report["folds"]}
    for row in rows.values():
        assert [area_of(row, fold) for fold in row["folds"]] == row["area"]
        for name in ("plain", "one size per batch"):
            if against := row.get(f"against {name}"):
                other = rows[row["regime"], name]
                expected = [area_of(row, fold) - area_of(other, fold) for fold in against["folds"]]
                assert against["area"] == pytest.approx(expected, abs=0.011)


WAYS = ("", ", stage 1 alone")  # of using an averaging network


def test_the_document_has_what_was_tested():
    report = json.loads((ROOT / "benchmarks" / "results" / "photographs.json").read_text())
    document = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    found = [*report["test"], *report["imagenette_test"]]
    of_folds = photographs_tables.of_folds([*report["test_folds"], *report["imagenette_seeds"]])
    lines = [*photographs_tables.of_tested(found), *of_folds]
    assert len(lines) >= 9 and [line for line in lines if line not in document.splitlines()] == []
    rows = {row["form"]: row for row in report["test"] if row["regime"] == "default"}
    words = " ".join(document.split())
    forms = ("mean", "mean, stage 1 alone", "mean at 128, stage 1 alone")
    for form, other in itertools.product(forms, ("plain", "one size per batch")):
        mean, low, high = rows[form][f"against {other}"]["area"]
        assert f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" in words
    assert f"on {rows['mean']['images']:,} test images by" in words
    longer = rows["mean at 128, stage 1 alone"]["against plain longer"]
    gains = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*longer[part]) for part in ("area", "size 1")]
    assert f'trained 1.25 times as long ("plain longer") by {gains[0]} and {gains[1]}.' in words
    targets = photographs_tables.of_targets(report["test"], report["imagenette_test"])
    assert len(targets) == 9 and [line for line in targets if line not in document.splitlines()] == []
    at_equal_cost = rows["mean, stage 1 alone"]["against plain at 112"]["area"]
    assert "chosen at 128, it is ahead by {:+.2f} [{:+.2f}, {:+.2f}].".format(*at_equal_cost) in words
    jitter = {row["form"]: row for row in report["test"] if row["regime"] == "jitter"}
    for form, other in (
        ("mean", "plain"),
        ("mean", "one size per batch"),
        ("mean, stage 1 alone", "one size per batch"),
        ("mean at 128, stage 1 alone", "plain"),
        ("mean at 128, stage 1 alone", "one size per batch"),
        ("mean at 128, stage 1 alone", "plain longer"),
        ("one size per batch", "plain"),
    ):
        gain = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*jitter[form][f"against {other}"]["area"]).replace("-", "−")
        assert gain in words
    second = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*rows[f"mean, lite1{way}"]["against lite1"]["area"]) for way in WAYS]
    assert f"plain network at 128 by {second[0]} points of area, and its stage 1 alone by {second[1]}." in words
    folds = {row["regime"]: row["against plain"] for row in report["folds"] if row["form"] == "mean at 128"}
    for regime, part in (
        ("default", "stage 1 alone"),
        ("jitter", "stage 1 alone"),
        ("jitter", "stage 1 alone, size 1"),
    ):
        values = folds[regime][part]
        assert f"{np.mean(values):+.2f} ± {np.std(values, ddof=1):.2f}".replace("-", "−") in words
    found = {(row["regime"], row["form"]): row for row in report["imagenette_test"]}
    every = ("area", "small", "large", "size 1")
    for regime, form, other, parts in (
        ("default", "mean", "plain", every),
        ("default", "mean, stage 1 alone", "plain", ["area"]),
        ("default", "plain at 112", "plain", ["area"]),
        ("default", "mean at 128, stage 1 alone", "plain", every),
        ("default", "mean at 128, stage 1 alone", "one size per batch", ["area", "size 1"]),
        ("default", "one size per batch", "plain", ["area", "size 1"]),
        ("20 epochs", "mean", "plain", every),
        ("20 epochs", "mean, stage 1 alone", "plain", every),
        ("20 epochs", "mean at 128, stage 1 alone", "plain", every),
        ("20 epochs", "mean at 128, stage 1 alone", "one size per batch", ["area", "size 1"]),
        ("20 epochs", "mean at 128", "plain", ["area", "large"]),
        ("jitter", "mean at 128, stage 1 alone", "plain", every),
        ("jitter", "mean at 128, stage 1 alone", "one size per batch", ["area", "size 1"]),
        ("jitter", "one size per batch", "plain", ["area", "size 1"]),
        ("default", "plain longer", "plain", ["area", "size 1"]),
        ("default", "plain longer", "mean at 128, stage 1 alone", ["area", "size 1"]),
        ("default", "next larger backbone", "plain", ["area", "size 1"]),
        ("default", "mean at 128, distilled, stage 1 alone", "mean at 128, stage 1 alone", ["area", "size 1"]),
    ):
        for part in parts:
            gain = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*found[regime, form][f"against {other}"][part])
            assert gain.replace("-", "−") in words
    (seeds,) = (row["against plain"] for row in report["imagenette_seeds"] if row["form"] == "mean")
    assert seeds["folds"] == found["default", "mean"]["folds"] == found["default", "plain"]["folds"] == [0, 1, 2]
    assert np.mean(seeds["area"]) == pytest.approx(found["default", "mean"]["against plain"]["area"][0], abs=0.02)
    each = ", ".join(f"{gain:+.2f}" for gain in seeds["area"]).replace("-", "−")
    assert found["default", "mean at 128"]["folds"] == [0, 1, 2]
    assert f"points of area in three training runs ({each})" in words
    assert (
        f"with seed 0, where averaging is at {each.split(',')[0]}, a plain network trained at 112 pixels too" in words
    )
    for row in report["imagenette"]:
        if len(row["area_by_learning_rate"]) > 1:
            assert photographs_tables.spread(row) in words
    backbone = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()
    large, small, half = (multiplications(backbone, (3, side, side)) for side in (128, 112, 56))
    for form, expected in {"plain": large, "mean": small + half, "mean, stage 1 alone": small}.items():
        assert rows[form]["arithmetic"] == pytest.approx(expected / large, abs=1e-3)


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
    assert f"averaging was ahead by {ahead('mean')}, and stage 1 of averaging at 128 pixels by" in words
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


def test_runs_that_share_their_test_images_are_averaged_image_by_image():
    """On Imagenette a fold is a seed: more seeds are no more images, and the interval is over images."""
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
    error = gains.std() / 40**0.5  # of the mean of 40 images
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
