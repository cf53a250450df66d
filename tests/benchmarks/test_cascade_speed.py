"""The cascade's wall-clock benchmark on small networks; and what documents quote of its report."""

import json
from types import SimpleNamespace

import pytest
import timm
import torch

import timm_wsms
from benchmarks.speed import cascade as speed
from tests.helpers.paths import ROOT

DOCS = ROOT / "docs" / "performance.md"


@pytest.mark.slow
def test_what_it_reports_is_of_these_networks_and_images(monkeypatch, tmp_path):
    torch.manual_seed(0)
    networks = {"plain": "test_resnet", "mean": "wsmean_test_resnet"}
    made = {name: timm.create_model(model, num_classes=5).eval() for name, model in networks.items()}
    monkeypatch.setattr(speed, "Run", lambda name, *_: SimpleNamespace(folder=tmp_path / name))
    monkeypatch.setattr(speed.timm, "create_model", lambda name, **_: made[name.split("/")[-2]])
    seen = []
    monkeypatch.setattr(
        speed, "batches_of", lambda run, model, number, size: torch.randn(number, 3, 64, 64).split(size)
    )
    monkeypatch.setattr(speed, "count", lambda backbone, side: side**2)
    levels = {"early": 0.0, "late": 2.0}
    monkeypatch.setattr(
        speed, "cascades_of", lambda run, mean: {name: timm_wsms.Cascade(mean, at) for name, at in levels.items()}
    )
    hooks = [model.register_forward_hook(lambda _, x, __: seen.append(len(x[0]))) for model in made.values()]
    found = speed.measure(0, batch_size=5, images=12, rounds=2)
    for hook in hooks:
        hook.remove()
    assert seen.count(2) == 2 * (2 + 1) and seen.count(5) == 2 * 2 * (2 + 1)  # both networks, two rounds and one before
    assert found.keys() == {"plain", "mean", "early", "late"}
    small, large = timm_wsms.Cascade(made["mean"]).costs((3, 64, 64))
    scale = 64**2 / 128**2
    expected = {"plain": 1.0, "mean": (64**2 + 32**2) / 128**2, "early": small * scale, "late": large * scale}
    for name, row in found.items():
        assert row["arithmetic"] == pytest.approx(expected[name], abs=1e-3)
        assert len(row["each"]) == 2 and min(row["each"]) > 0
        assert row["time"] == pytest.approx(sum(row["each"]) / 2, abs=1e-3)
    assert found["plain"]["each"] == [1.0, 1.0]


def test_the_table_in_the_docs_is_the_report():
    report = json.loads((ROOT / "benchmarks" / "results" / "cascade_speed.json").read_text())
    assert report["rounds"] >= 5 and len(report["folds"]) >= 3
    assert "\n".join(speed.lines(report)) in DOCS.read_text()
