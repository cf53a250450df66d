"""The experiments about object size: what is asked of the script, and the report from made-up predictions."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import mnist_scale
import mnist_scale_data
import size_runs


def test_digits_are_scaled_about_their_center_on_black():
    pixels = np.zeros((28, 28), np.uint8)
    pixels[10:18, 8:20] = 255
    small = np.asarray(mnist_scale_data.scaled(Image.fromarray(pixels), 0.5)).astype(float)
    assert small.shape == (28, 28) and small[0].max() == 0
    rows, columns = small.sum(1) @ np.arange(28) / small.sum(), small.sum(0) @ np.arange(28) / small.sum()
    assert (rows, columns) == pytest.approx((13.5, 13.5), abs=0.3)
    assert small.sum() / 255 == pytest.approx(8 * 12 / 4, rel=0.2)


def test_splits_are_disjoint_and_stratified():
    labels = np.repeat([0, 1, 2], [350, 700, 1750])
    splits = mnist_scale_data.stratified(labels, {"train": 400, "test": 2000}, np.random.default_rng(0))
    taken = np.concatenate([*splits.values()])
    assert [len(part) for part in splits.values()] == [400, 2000] and len(set(taken)) == 2400
    for part in splits.values():
        share = np.bincount(labels[part]) / len(part)
        assert share == pytest.approx([0.125, 0.25, 0.625], abs=0.01)
    other = mnist_scale_data.stratified(labels, {"train": 400}, np.random.default_rng(1))["train"]
    assert set(other) != set(splits["train"]) and (np.diff(other) < 0).any()


def test_no_form_has_more_than_half_a_million_parameters():
    import timm
    import yaml

    for form in mnist_scale.FORMS:
        words = [word.removeprefix("--model_kwargs.") for word in form.words]
        kwargs = {key: yaml.safe_load(value) for key, value in zip(words[::2], words[1::2], strict=True)}
        parameters = sum(value.numel() for value in timm.create_model(form.model, **kwargs).parameters())
        assert 470_000 < parameters < 500_000, form


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Options for runs of two forms and two seeds that are finished, but for the second seed of the second form."""
    plain, other = size_runs.Form("plain", "a"), size_runs.Form("other", "b", ("--x", "1"))
    runs = [size_runs.Run(form, "g", (), seed) for seed in (0, 1) for form in (plain, other)]
    for run in runs[:3]:
        run.model(tmp_path).mkdir(parents=True)
    correct = {"plain": 60.0, "other": 70.0}

    def scale(names, options):
        names = [Path(name).parent.name for name in names]
        models = [
            {
                **{"model": name, "weights_sha256": "", "parameters": 5, "factors": [0.5, 1.0]},
                "at_one": (top1 := correct[name.split("_")[0]] + int(name[-1])),
                **{"area": top1 - 10, "area_interval": (0.0, 1.0), "top1": [top1 - 20, top1]},
            }
            for name in names
        ]
        pairs = [
            {
                **{"first": names[0], "second": name, "only_first": [1, 2], "only_second": [3, 4]},
                **{"p": [0.5, 0.25], "area_difference": 10.0, "area_interval": (9.0, 11.0)},
            }
            for name in names[1:]
        ]
        return {"models": models, "comparisons": pairs}

    monkeypatch.setattr(size_runs.scale, "scale", scale)
    options = argparse.Namespace(outputs=tmp_path, results=tmp_path / "r.json", source=None, limit=10)
    return runs, options


def test_report(finished):
    runs, options = finished
    plain, other = size_runs.collect(runs, [0.5, 1.0], "what", options)["forms"]
    assert plain["at_one"] == {"mean": 60.5, "std": pytest.approx(0.5**0.5, abs=1e-3)}
    assert [size["mean"] for size in plain["top1"]] == [40.5, 60.5] and plain["seeds"][0]["against_plain"] is None
    assert other["n"] == 1 and other["area"] == {"mean": 60.0, "std": None}
    against = {"only_plain": [1, 2], "only_this": [3, 4], "p": [0.5, 0.25]}
    difference = {"area_difference": 10.0, "area_interval": (9.0, 11.0)}
    assert other["seeds"][0]["against_plain"] == {**against, **difference}
    assert "at size 1 60.50 ± 0.71 %  area 50.50 ± 0.71 %" in size_runs.describe(plain)
    assert "against plain +10.00" in size_runs.describe(other) and options.results.exists()


def test_what_is_not_finished_is_not_run(finished):
    runs, options = finished
    missing = size_runs.Run(size_runs.Form("third", "c"), "g", (), 0)
    rows = size_runs.collect([*runs, missing], [0.5, 1.0], "what", options)["forms"]
    assert rows[2]["n"] == 0 and rows[2]["area"] is None and size_runs.describe(rows[2]).endswith("not run")
