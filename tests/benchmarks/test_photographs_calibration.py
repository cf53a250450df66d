"""Calibrated averages of stages: the fit, its gains on test images against loops, and what documents say of them."""

import itertools
import json

import numpy as np
import pytest
import torch

from benchmarks import photographs_calibration as calibration
from benchmarks.photographs import RESULTS, SIZES
from timm_wsms.evaluation.object_size.curve import area_weights

ONE = SIZES.index(1.0)


def run_of(validation, test, seed=0):
    """A record of two stages, 3 classes and as many images: stage 1 says more, stage 2 is loud and says nothing."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, images in (("validation", validation), ("test", test)):
        labels = rng.integers(0, 3, images)
        knows = 2 * np.eye(3)[labels] + rng.standard_normal((len(SIZES), images, 3))
        arrays[f"{split}_logits"] = np.stack([knows, 6 * rng.standard_normal(knows.shape)]).astype(np.float16)
        arrays[f"{split}_labels"], arrays[f"{split}_index"] = labels, rng.permutation(images)
    return {"arrays": arrays}


@pytest.mark.parametrize("kind", calibration.KINDS)
def test_a_fit_is_at_a_minimum(kind):
    arrays = run_of(400, 1)["arrays"]
    logits = torch.from_numpy(arrays["validation_logits"]).double()[:, ONE]
    labels = torch.from_numpy(arrays["validation_labels"])
    free = calibration.fit(kind, logits, labels)

    def loss(at):
        return torch.nn.functional.nll_loss(calibration.KINDS[kind](logits, at), labels).item()

    for shift, (row, column) in itertools.product((0.05, -0.05), ((0, 0), (0, 1), (1, 0))):
        moved = free.clone()
        moved[row, column] += shift
        assert loss(moved) >= loss(free) - 1e-7


@pytest.mark.parametrize("fitted", calibration.FITTED)
def test_gains_are_those_of_single_test_images(fitted):
    run = run_of(400, 30)
    arrays = run["arrays"]
    found = calibration.of_run(run, calibration.FITTED[fitted])
    sizes = calibration.FITTED[fitted]
    logits, labels = (torch.from_numpy(arrays[f"validation_{what}"]) for what in ("logits", "labels"))
    kind, free = calibration.better(logits.double(), labels, sizes)
    factors, weights = free[0].exp().numpy(), free[1].softmax(0).numpy()
    right = {name: np.zeros((len(SIZES), 30)) for name in ("ours", "the mean", "stage 1 alone")}
    for size, (place, image) in itertools.product(range(len(SIZES)), enumerate(arrays["test_index"])):
        stages = arrays["test_logits"][:, size, place].astype(float)
        scaled = stages * factors[:, None]
        each = np.exp(scaled) / np.exp(scaled).sum(1, keepdims=True)
        ours = scaled.mean(0) if kind == "factors" else weights @ each
        for name, scores in (("ours", ours), ("the mean", stages.mean(0)), ("stage 1 alone", stages[0])):
            right[name][size, image] = scores.argmax() == arrays["test_labels"][place]
    for name, of_sizes in (("size 1", np.eye(len(SIZES))[ONE]), ("area", np.asarray(area_weights(SIZES)))):
        taken, gains = found[name]
        assert taken == kind
        for rival in ("the mean", "stage 1 alone"):
            assert gains[rival] == pytest.approx(100 * of_sizes @ (right["ours"] - right[rival]))
        assert (gains["the better of both"] == gains["stage 1 alone"]).all()  # which the validation images show
        assert gains["the mean"].mean() > 0


def test_what_the_document_says_of_it():
    report = json.loads((RESULTS.parent / "photographs_calibration.json").read_text())["data"]
    words = " ".join((RESULTS.parents[2] / "docs" / "results.md").read_text(encoding="utf-8").split())

    def gains(data, regime, form="mean at 128"):
        found = report[data][regime][form]
        return [found[f"fitted at {fit}"][figure] for fit, figure in (("size 1", "size 1"), ("all sizes", "area"))]

    def said(gain):
        return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*gain).replace("-", "−")

    crop, jitter = gains("imagenette", "default"), gains("imagenette", "jitter")
    at_one, in_area = (said(gain["the mean"]) for gain in crop)
    assert f"at 128 pixels after 5 epochs {at_one} at size 1 and {in_area} in area, with jitter" in words
    assert "{} and {}: there the mean counts".format(*(said(gain["the mean"]) for gain in jitter)) in words
    assert all(gain["the mean"][1] > 0 > gain["stage 1 alone"][1] for gain in (*crop, *jitter))
    over = [said(gain["stage 1 alone"]) for gain in (*crop, *jitter)]
    assert "over it the gains are {} and {}, with jitter {} and {}.".format(*over) in words
    for data, regimes in report.items():
        for regime, form in itertools.product(regimes, ("mean", "mean at 128")):
            if len(regimes[regime].get(form, {"folds": []})["folds"]) > 1:
                for gain in gains(data, regime, form):
                    assert gain["the better of both"][1] < 0, "the words say that none is significant"
