"""The runs on photographs: their settings are the training script's, their figures those of numpy."""

import itertools
import json

import numpy as np
import pytest
import timm

from benchmarks import photographs, photographs_records, photographs_report
from benchmarks.photographs import FORMS, RECIPES, REGIMES, SIZES, Run
from tests.helpers.paths import ROOT
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
