"""The experiments about object size: what is asked of the script, and the report from made-up predictions."""

import argparse
import base64
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.common import size_sweep, sweep
from benchmarks.mnist_scale import data as mnist_scale_data
from benchmarks.mnist_scale import train as mnist_scale
from benchmarks.object_size import plot as size_plot
from tests.helpers.paths import ROOT
from timm_wsms.evaluation.object_size.curve import SizePredictions, size_curve
from timm_wsms.evaluation.object_size.report import Result


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
        words = dict(zip(form.words[::2], form.words[1::2], strict=True))
        prefix = "--model_kwargs."
        kwargs = {key[len(prefix) :]: yaml.safe_load(words[key]) for key in words if key.startswith(prefix)}
        parameters = sum(value.numel() for value in timm.create_model(form.model, **kwargs).parameters())
        assert 470_000 < parameters < 500_000, form


SIZES = (0.5, 1.0)
IMAGES = 21  # not a multiple of eight
GROUPS = {"g": ("--y", "2")}
FORMS = [sweep.Form("plain", "a"), sweep.Form("other", "b", ("--x", "1")), sweep.Form("third", "c")]


def predictions(run):
    """What a made-up network says: (size, image), each form and seed other images right. The true class is 3."""
    wrong = np.random.default_rng([*map(ord, run.form.name), run.seed]).random((len(SIZES), IMAGES)) < 0.4
    return np.where(wrong, 5, 3)


@pytest.fixture
def options(tmp_path):
    told = ["--outputs", str(tmp_path / "outputs"), "--results", str(tmp_path / "r.json"), "--jobs", "1"]
    return size_sweep.parser(None, "x", seeds=(0, 1)).parse_args(told)


@pytest.fixture
def trained(monkeypatch, options):
    """Names of the runs that were trained, each in no time; what is evaluated are made-up predictions."""
    names, runs = [], {}
    labels = np.full(IMAGES, 3)

    def train(run, recipe, options):
        names.append(run.name)
        folder = run.model(options.outputs)
        folder.mkdir(parents=True)
        lines = [{"seconds": 60, "train_loss": 2.0}, {"seconds": 120, "train_loss": 1.5}]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (folder / "settings.yaml").write_text("compile: true\n")
        (folder / "results.json").write_text('{"hardware": {"device": "of the training"}}')
        runs[str(folder)] = run

    def measure_all(models, chosen):
        assert (chosen.factors, chosen.data, chosen.limit) == ([*SIZES], "uoft-cs/cifar10", 10_000)
        found = SizePredictions(SIZES, np.arange(IMAGES), labels, predictions(runs[models[0]]))
        result = Result(models[0], f"weights of {runs[models[0]].name}", 5, None, found, size_curve(found), None)
        return (
            {"model": result},
            {},
            argparse.Namespace(labels=labels, class_names=["a"], value_range=None, pixels=labels),
        )

    monkeypatch.setattr(size_sweep, "train", train)
    monkeypatch.setattr(size_sweep.object_size, "measure_all", measure_all)
    return names


def test_report_compares_runs_of_several_sessions_image_by_image(options, trained):
    runs = sweep.choose(FORMS, GROUPS, options)
    assert [(run.form.name, run.seed) for run in runs[:3]] == [("plain", 0), ("other", 0), ("third", 0)]
    size_sweep.train_all(runs[:2], SIZES, "recipe", options)
    shutil.rmtree(options.outputs)  # another session: only the records are left
    size_sweep.train_all([runs[0], runs[3]], SIZES, "recipe", options)
    assert trained == ["plain_g_seed0", "other_g_seed0", "plain_g_seed1"]
    plain, other, third = size_sweep.collect(FORMS, GROUPS, "what", options)["forms"]

    right = {run: predictions(run) == 3 for run in runs}
    share = 100 * np.array([right[runs[0]].mean(1), right[runs[3]].mean(1)])
    assert [size["mean"] for size in plain["top1"]] == pytest.approx(share.mean(0), abs=1e-3)
    assert plain["at_one"]["std"] == pytest.approx(share[:, 1].std(ddof=1), abs=1e-3)
    assert (plain["n"], plain["test_images"], plain["seeds"][0]["against_plain"]) == (2, IMAGES, None)
    assert (other["n"], other["area"]["std"], other["seeds"][0]["train_minutes"]) == (1, None, 3)
    against = other["seeds"][0]["against_plain"]
    assert against["only_plain"] == (right[runs[0]] & ~right[runs[1]]).sum(1).tolist()
    assert against["only_this"] == (right[runs[1]] & ~right[runs[0]]).sum(1).tolist()
    difference = 100 * (right[runs[1]].mean() - right[runs[0]].mean())
    assert against["area_difference"] == pytest.approx(difference)
    assert f"against plain {difference:+.2f}" in size_sweep.describe(other)
    record = json.loads((options.results.with_suffix("") / "other_g_seed0.json").read_text())
    assert (record["trained_on"], record["compiled"]) == ({"device": "of the training"}, True)
    assert third["n"] == 0 and third["area"] is None and size_sweep.describe(third).endswith("not run")
    assert json.loads(options.results.read_text())["recipe_words"] == {"g": "--y 2"}


def leave_a_trace_or_be_killed(run, options):
    """In place of training, in a process that has none of this one's patches."""
    if run.form.name == "plain":
        os.kill(os.getpid(), signal.SIGKILL)
    options.outputs.mkdir(exist_ok=True)
    (options.outputs / run.name).write_text(f"{os.getpid()} {torch.get_num_threads()}")
    return {"top1": run.seed}


@pytest.mark.slow
def test_of_several_runs_at_a_time_one_that_is_killed_stops_no_other(options):
    options.jobs, options.threads, options.seeds = 2, 3, [0]
    with pytest.raises(SystemExit, match=r"\.log: plain_g_seed0$"):
        sweep.run_all(sweep.choose(FORMS, GROUPS, options), leave_a_trace_or_be_killed, options)
    traces = {path.name: path.read_text().split(maxsplit=1) for path in options.outputs.iterdir()}
    assert traces.keys() == {"other_g_seed0", "third_g_seed0"}
    assert {rest for _, rest in traces.values()} == {"3"}
    assert str(os.getpid()) not in {process for process, _ in traces.values()}
    records = {record["form"]: record["top1"] for record in sweep.records_of(options)}
    assert records == {"other": 0, "third": 0}


@pytest.mark.parametrize(
    ("eager", "fourier", "watched"), [(False, False, None), (True, False, "v"), (False, True, None)]
)
def test_a_run_is_the_training_script_with_the_forms_settings(options, monkeypatch, eager, fourier, watched):
    commands = []

    def train(command, **_):
        commands.append(command)
        Path(command[command.index("--output") + 1], "model").mkdir()

    monkeypatch.setattr(size_sweep.subprocess, "run", train)
    options.eager, options.fourier, options.source, options.epochs = eager, fourier, ".", 3
    size_sweep.train(replace(sweep.choose(FORMS, GROUPS, options)[1], watched=watched), "recipe", options)
    (command,) = commands
    assert command[1:] == [
        *(["-m", "benchmarks.common.fourier_convolution"] if fourier else []),
        *("train_accelerate.py", "--recipe", "recipe", "--model", "b", "--x", "1", "--y", "2", "--epochs", "3"),
        *("--seed", "0", "--output", str(options.outputs / "other_g_seed0"), "--resume", "auto"),
        *("--data.source", str(Path().resolve())),
        *(["--data.test_split", "v"] if watched else []),
        *(["--compile", "false"] if eager or fourier else []),  # after the form's own: the last counts
    ]


def test_records_of_other_settings_are_not_mixed(options, trained):
    runs = sweep.choose(FORMS[:1], GROUPS, options)
    size_sweep.train_all(runs, SIZES, "recipe", options)
    options.epochs = 1
    with pytest.raises(SystemExit, match=r"plain_g_seed0.json is of other settings; remove it, or .* --results"):
        size_sweep.train_all(runs, SIZES, "recipe", options)


def test_records_of_other_images_are_not_compared(options, trained):
    size_sweep.train_all(sweep.choose(FORMS[:2], GROUPS, options)[:2], SIZES, "recipe", options)
    path = options.results.with_suffix("") / "other_g_seed0.json"
    path.write_text(path.read_text().replace('"test_set_sha256": "', '"test_set_sha256": "0'))
    with pytest.raises(SystemExit, match="plain, g, seed 0 and other, g, seed 0 were not tested on the same images"):
        size_sweep.collect(FORMS, GROUPS, "what", options)


def test_a_report_of_nothing_is_not_written(options):
    with pytest.raises(SystemExit, match="no run is finished"):
        size_sweep.collect(FORMS, GROUPS, "what", options)
    assert not options.results.exists()


def test_gains_are_taken_seed_by_seed():
    top1 = {("plain", 0): 70.0, ("paper", 0): 71.0, ("plain", 1): 74.0, ("paper", 1): 73.0, ("2 stages", 1): 73.5}
    records = [{"form": name, "seed": seed, "test_top1": value} for (name, seed), value in top1.items()]
    bases = {"plain": "plain", "paper": "plain", "not run": "plain", "2 stages": "paper"}
    plain, paper, two = sweep.gains(records, bases)
    assert paper["test_top1"] == {"mean": 72.0, "std": 1.414} and paper["n"] == 2
    assert paper["gain_on_plain"] == {0: 1.0, 1: -1.0} and plain["gain_on_plain"] == {0: 0.0, 1: 0.0}
    assert (two["gain_on_plain"], two["gain_on_base"], two["test_top1"]["std"]) == ({1: -0.5}, {1: 0.5}, None)


def test_names_of_runs_are_names_of_files():
    run = sweep.Run(sweep.Form("γ × 10, 2×2 log-sum-exp", "a"), "56+, 60 epochs", (), 1)
    assert run.name == "_10_2_2_log_sum_exp_56+_60_epochs_seed1"
    for path in (ROOT / "benchmarks" / "results").glob("*/*_seed?.json"):
        one = json.loads(path.read_text(encoding="utf-8"))
        assert sweep.Run(sweep.Form(one["form"], ""), one["group"], (), one["seed"]).name == path.stem


def test_unknown_names(options):
    options.forms = ["plain", "othr"]
    with pytest.raises(SystemExit, match="there is no 'othr'; choose from 'plain', 'other', 'third'"):
        sweep.choose(FORMS, GROUPS, options)
    options.forms, options.groups = None, ["h"]
    with pytest.raises(SystemExit, match="there is no 'h'; choose from 'g'"):
        sweep.choose(FORMS, GROUPS, options)


def test_the_gain_on_the_plain_network_and_its_interval():
    """Over two seeds, of made-up records; the interval against the paired difference's textbook form."""

    def record(form, group, seed, right):
        packed = [base64.b64encode(np.packbits(row).tobytes()).decode() for row in right]
        told = {"form": form, "group": group, "seed": seed, "recognized": packed, "sizes": SIZES}
        return {**told, "test_images": right.shape[1], "test_set_sha256": "same"}

    right = np.random.default_rng(0).random((2, 2, 2, 21)) < 0.6  # form, seed, size, image
    records = [
        record(form, "size 1", seed, right[n, seed]) for n, form in enumerate(("plain", "ms")) for seed in (0, 1)
    ]
    records.append(record("ms", "jitter", 0, right[0, 0]))  # there is no plain network to compare it with
    found = size_plot.gains(records)
    assert found["jitter"] == {} and list(found["size 1"]) == ["ms"]
    seeds, (gain, width) = found["size 1"]["ms"]
    each = 50 * (right[1].astype(int) - right[0]).sum(0)
    assert seeds == 2
    np.testing.assert_allclose(gain, each.sum(1) / 21)
    variance = ((each - gain[:, None]) ** 2).sum(1) / 20
    np.testing.assert_allclose(width, 1.96 * (variance / 21) ** 0.5)
