"""That the benchmark of object sizes runs, and keeps the command's figures and pictures."""

import importlib
import json

import huggingface_hub.utils._cache_assets as assets
import pytest
from accelerate.state import AcceleratorState

pytestmark = pytest.mark.slow  # a benchmark


def test_it_runs_on_digits(monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    AcceleratorState._reset_state(reset_partial_state=True)
    few = ["--source", "digits", "--limit", "6", "--stage_limit", "4"]
    results = tmp_path / "results.json"
    importlib.import_module("benchmarks.object_size.kept_models").main(
        [*few, "--results", str(results), "--docs", str(tmp_path)]
    )
    found = json.loads(results.read_text())
    assert {"machine", "versions", "command"} <= set(found)
    assert (found["images"], found["stages"]["images"]) == (6, 4)
    assert len(found["models"]) == 2 and len(found["stages"]["drop"]) == 3 and len(found["stages"]["drop"][0]) == 9
    (comparison,), (plain, averaging) = found["averaging"]["comparisons"], found["averaging"]["models"]
    assert (plain["model"], averaging["model"]) == ("resnet20_cifar10", "wsms_resnet20_sizes_cifar10")
    assert comparison["area_difference"] == pytest.approx(averaging["area"] - plain["area"])
    assert len([*tmp_path.glob("scale*_resnet20_cifar10.png")]) == 5
