"""The cascade's wall-clock benchmark on small networks; and what documents quote of its report."""

import json

import numpy as np
import pytest
import timm
import torch

import timm_wsms
from benchmarks.photographs import RESULTS, SIZES
from benchmarks.speed import cascade as speed
from tests.helpers.paths import ROOT

DOCS = ROOT / "docs" / "performance.md"
RUN = speed.RUNS["flowers"]
LEVELS = {speed.ALL: ([2.0], [1.0]), "early": ([0.0], [1.0]), "some": ([0.5], [1.0])}


@pytest.fixture
def networks(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(
        speed, "batches_of", lambda run, model, number, size: torch.randn(number, 3, 64, 64).split(size)
    )
    monkeypatch.setattr(speed, "relative", lambda form, factors, data: 64**2 / 128**2)
    made = {"plain": "test_resnet", "mean": "wsmean_test_resnet"}
    return {name: timm.create_model(model, num_classes=5).eval() for name, model in made.items()}


def test_all_forms_run_on_these_images_in_turn(networks):
    seen = []
    hooks = [model.register_forward_hook(lambda _, x, __: seen.append(len(x[0]))) for model in networks.values()]
    found = speed.measure(RUN, "eager", networks, LEVELS, size=5, images=12, rounds=2)
    for hook in hooks:
        hook.remove()
    # the plain network in two rounds and one before; the other is called as a whole once, to compare its logits
    assert seen == [5, 5, 2] * 3 + [5]
    assert found["forms"].keys() == {"plain", *LEVELS} and found["largest_difference_of_logits"] == 0
    for row in found["forms"].values():
        assert len(row["each"]) == 2 and min(row["each"]) > 0
        assert row["time"] == pytest.approx(sum(row["each"]) / 2, abs=1e-3)
    assert found["forms"]["plain"]["each"] == [1.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["compiled", "onnxruntime"])
def test_other_runtimes_compute_the_same(networks, runtime):
    sides = dict.fromkeys(networks, 64)
    made = speed.RUNTIMES[runtime](networks["plain"], networks["mean"], LEVELS, sides)
    here = speed.eager(networks["plain"], networks["mean"], LEVELS, sides)
    images = torch.randn(6, 3, 64, 64)
    with torch.no_grad():
        for name, forward in made.items():
            torch.testing.assert_close(torch.as_tensor(forward(images)), here[name](images), atol=1e-4, rtol=1e-4)


def test_arithmetic_is_that_of_the_stages_taken(networks):
    found = speed.arithmetic(RUN, networks["mean"], LEVELS, torch.randn(12, 3, 64, 64).split(5))
    small, large = timm_wsms.Cascade(networks["mean"]).costs((3, 64, 64))
    scale = 64**2 / 128**2
    assert found["plain"] == 1
    assert found["early"] == pytest.approx(small * scale, abs=1e-3)
    assert found[speed.ALL] == pytest.approx(large * scale, abs=1e-3)
    assert found["early"] <= found["some"] <= found[speed.ALL]


def test_thresholds_come_from_the_folds_validation_images():
    """At the threshold for 1 point no more than 1 point is lost on them; the kept network is that run's."""
    arrays = np.load(RESULTS / f"{RUN.trained}.npz")
    logits, labels = arrays["validation_logits"].astype(np.float64)[:, SIZES.index(1.0)], arrays["validation_labels"]
    (threshold,), (heat,) = speed.levels_of(RUN)["cascade, 1 point allowed"]
    small = np.exp(logits[1] / heat)
    sure = (small / small.sum(1, keepdims=True)).max(1) >= threshold
    answers = np.where(sure, logits[1].argmax(1), logits.mean(0).argmax(1))
    lost = 100 * ((logits.mean(0).argmax(1) == labels).mean() - (answers == labels).mean())
    assert 0 < sure.mean() < 1 and lost <= 1
    card = (speed.FOLDERS["flowers"][1] / "settings.yaml").read_text()
    assert "scale_jitter" in card and "seed: 2" in card


@pytest.mark.parametrize("data", speed.RUNS)
def test_the_table_in_the_docs_is_the_report(data):
    report = json.loads(speed.OUT[data].read_text())
    assert report["rounds"] >= 5 and list(report["batches"]) == ["batches of 64", "one by one"]
    assert "\n".join(speed.lines(report)) in DOCS.read_text()
    differences = [
        found[runtime]["largest_difference_of_logits"]
        for found in report["batches"].values()
        for runtime in speed.RUNTIMES
    ]
    assert max(differences) < 1e-4


def test_the_words_of_the_docs_are_the_reports():
    flowers, imagenette = (json.loads(path.read_text())["batches"] for path in speed.OUT.values())
    text, cascade = (" ".join(path.read_text().split()) for path in (DOCS, DOCS.with_name("cascade.md")))
    alone = [flowers["one by one"][runtime]["forms"]["plain"]["ms_per_image"] for runtime in speed.RUNTIMES]
    assert "{:.1f} ms per image eager and {:.1f} ms compiled, against {:.1f} ms in onnxruntime".format(*alone) in text
    words = []
    for found in (flowers, imagenette):
        for level in ("calibrate(1)", "calibrate(2)"):
            times = [
                found["batches of 64"][runtime]["forms"][f"cascade, `{level}`"]["time"] for runtime in speed.RUNTIMES
            ]
            assert max(times) < 0.7  # the target
            words.append(f"{min(times):.2f} to {max(times):.2f}")
    expected = "{} with `calibrate(1)` and {} with `calibrate(2)` on flowers, {} and {} on Imagenette."
    assert expected.format(*words) in cascade
    one_by_one = {
        data: [
            found["one by one"][runtime]["forms"][name]["time"]
            for runtime in ("eager", "compiled")
            for name in speed.levels_of(speed.RUNS[data])
            if name not in (speed.ALL, skipped)
        ]
        for data, found, skipped in (
            ("imagenette", imagenette, None),
            ("flowers", flowers, "cascade, 2 points allowed"),
        )
    }
    least, most = min(one_by_one["imagenette"]), max(one_by_one["imagenette"])
    assert f"{least:.2f} to {most:.2f} of the time, but" in text
    least, most = min(one_by_one["flowers"]), max(one_by_one["flowers"])
    assert f'× {least:.2f} to × {most:.2f}, except in the row "2 points allowed"' in text

    def one_image(found, *runtimes):
        times = [
            found["one by one"][runtime]["forms"][f"cascade, `{level}`"]["time"]
            for runtime in runtimes
            for level in ("calibrate(1)", "calibrate(2)")
        ]
        return f"{min(times):.2f} to {max(times):.2f}"

    in_onnx, in_pytorch = (
        [one_image(found, *runtimes) for found in (flowers, imagenette)]
        for runtimes in (("onnxruntime",), ("eager", "compiled"))
    )
    said = (
        f"takes {in_onnx[0]} of the time in onnxruntime, but {in_pytorch[0]} in PyTorch; ResNet-10-T takes {in_onnx[1]}"
    )
    assert f"{said} and {in_pytorch[1]}." in cascade
