"""Stage 1 as a plain backbone on CIFAR-10: its report against loops over images, and what documents quote of it."""

import json

import numpy as np
import pytest
import torch

from benchmarks.object_size import stage_one
from benchmarks.photographs import SIZES
from tests.helpers.paths import ROOT
from timm_wsms import to_backbone
from timm_wsms.foreign import read_yaml
from timm_wsms.object_scaling import rescale_object
from timm_wsms.training.settings import parse


def test_hits_are_those_of_single_images():
    ours = stage_one.load(stage_one.kept("wsms_resnet20_sizes_cifar10"))
    images, labels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 6, 6])
    alone = stage_one.hits(to_backbone(ours), images, labels)
    for place, size in enumerate(SIZES):
        for image in range(4):
            with torch.no_grad():
                logits = ours.stage_logits(rescale_object(images[image : image + 1], size))[0]  # of stage 1
            assert alone[place, image] == (logits.argmax().item() == labels[image])


def test_what_is_trained_differs_from_the_kept_networks_in_one_thing():
    """But for precision and compilation, which the report names."""
    ours, plain = (
        read_yaml(stage_one.kept(f"{name}_cifar10") / "settings.yaml") for name in ("wsms_resnet20_sizes", "resnet20")
    )
    found = {name: parse(words.split()) for name, words in stage_one.TRAINED.items()}
    longer, sizes, distilled = found.values()
    assert (longer.epochs, plain["epochs"], sizes.epochs, distilled.epochs) == (10, 8, 8, 8)
    assert sizes.data.train_sizes == [24, 32, 40] and longer.data.train_sizes is None
    assert distilled.stage_distill == 1 and distilled.model_kwargs == ours["model_kwargs"]
    for settings, kept in ((longer, plain), (sizes, plain), (distilled, ours)):
        assert (settings.model, settings.lr, settings.batch_size) == (kept["model"], kept["lr"], kept["batch_size"])
        assert vars(settings.schedule) == kept["schedule"]
        assert vars(settings.optimizer).items() >= kept["optimizer"].items()
        assert (settings.seed, settings.data.augmentation) == (kept["seed"], kept["data"]["augmentation"])


def test_with_jitter_all_are_trained_alike_but_for_scale_jitter():
    alone = {name: parse(words.split()) for name, words in stage_one.TRAINED.items()}
    found = {name: parse(words.split()) for name, words in stage_one.WITH_JITTER.items()}
    assert [*found] == ["plain", "averaging", *alone]
    for settings in found.values():
        assert settings.data.scale_jitter == (0.5, 2) and settings.precision == "bf16"
        settings.data.scale_jitter = None
    assert all(found[name] == settings for name, settings in alone.items())
    plain, averaging = found["plain"], found["averaging"]
    longer, sizes, distilled = (found[name] for name in alone)
    longer.epochs = longer.eval_every = plain.epochs
    sizes.data.train_sizes = None
    distilled.stage_distill, distilled.stage_distill_temperature = 0, averaging.stage_distill_temperature
    assert longer == plain == sizes and distilled == averaging


def test_differences_are_those_of_the_same_images():
    rng = np.random.default_rng(0)
    found = {name: rng.random((len(SIZES), 300)) < share for name, share in {"plain": 0.5, "other": 0.7}.items()}
    rows = stage_one.table(found, {"plain": 1.0, "other": 1.25})
    places = np.log(SIZES)
    each = [100 * np.trapezoid(own.astype(float), places, axis=0) / (places[-1] - places[0]) for own in found.values()]
    mean, low, high = rows["other"]["against plain"]["area"]
    assert mean == pytest.approx((each[1] - each[0]).mean(), abs=0.006) and low < mean < high
    assert rows["plain"]["top1"] == pytest.approx(100 * found["plain"].mean(1), abs=0.006)


def test_the_table_in_the_docs_is_the_report():
    report = json.loads((ROOT / "benchmarks" / "results" / "stage_one_cifar10.json").read_text())
    lines = stage_one.lines(report["rows"])
    assert report["test_images"] == 10_000 and "\n".join(lines) in (ROOT / "docs" / "results.md").read_text()
    assert report["rows"]["its stage 1 alone"]["arithmetic"] == 1
    words = " ".join((ROOT / "docs" / "results.md").read_text().split())
    rows = report["rows"]

    def gain(name, part):
        return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*rows[name]["against plain"][part]).replace("-", "−")

    longer, sizes, distilled = stage_one.TRAINED
    alone = "its stage 1 alone"
    assert f"level with the plain network, {gain(alone, 'size 1')}; one size per batch is at" in words
    assert f"{gain(sizes, 'size 1')} there. Longer training changes the area by {gain(longer, 'area')} and" in words
    assert f"size 1 by {gain(longer, 'size 1')}." in words
    areas = [f"{rows[name]['area']:.2f}" for name in (distilled, alone, sizes)]
    assert (
        f"by {gain(distilled, 'area')}: its area is {areas[0]}, {areas[1]} without distillation and {areas[2]}" in words
    )
    assert f"level at size 1, {gain(distilled, 'size 1')}. This is one run" in words
    ahead = [rows[name]["area"] - rows[sizes]["area"] for name in (alone, distilled)]
    assert f"alone misses it, at {ahead[0]:+.2f}, and with distillation reaches it, at {ahead[1]:+.2f}." in words
    assert ahead[0] < 1.5 <= ahead[1] and rows[sizes]["area"] > rows["plain"]["area"]
    assert all(rows[distilled]["against plain"][part][1] > 0 for part in ("area", "small", "large"))
    jitter = json.loads((ROOT / "benchmarks" / "results" / "stage_one_cifar10_jitter.json").read_text())
    assert jitter["test_images"] == 10_000
    assert {(one["epochs"], one["precision"]) for one in jitter["trained_with"].values()} == {(8, "bf16"), (10, "bf16")}
    rows = jitter["rows"]
    said = [
        f"stage 1 gains on small objects, {gain(alone, 'small')}, and loses on large ones, {gain(alone, 'large')};",
        f"as much on small ones, {gain(distilled, 'small')}, and loses nothing significant on large ones, "
        f"{gain(distilled, 'large')}.",
        f"alone misses it, at {gain(alone, 'area')}, and with distillation reaches it, at {gain(distilled, 'area')}.",
        f"level with the plain network, {gain(alone, 'size 1')} and {gain(distilled, 'size 1')}. A plain network",
        f"gains {gain(longer, 'area')}: more than stage 1 alone, and "
        f"{rows[distilled]['area'] - rows[longer]['area']:.2f} points less than with distillation",
        f"One size per batch loses, {gain(sizes, 'area')}.",
    ]
    assert [statement for statement in said if statement not in words] == []
    ahead = {name: rows[name]["against plain"]["area"][0] for name in (alone, distilled, longer, sizes)}
    assert ahead[sizes] < 0 < ahead[alone] < 0.7 < ahead[longer] < ahead[distilled]
    low, high = rows[distilled]["against plain"]["large"][1:]
    assert low < 0 < high and rows[alone]["against plain"]["large"][2] < 0
    trained = report["trained_with"]
    assert {name: one["precision"] for name, one in trained.items() if one["precision"] != "bf16"} == {
        "averaging": "no"
    }
    assert (trained["plain"]["epochs"], trained[longer]["epochs"]) == (8, 10)
