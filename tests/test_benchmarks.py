"""What a results file says about its origin, and that the benchmark of the training loop runs."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script of benchmarks/ as it would be run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_command_holds_no_paths_of_this_machine(benchmark, tmp_path):
    argv = ["benchmarks/x.py", "--data", str(tmp_path / "cifar10"), f"--out={tmp_path}/a.json", "--lr", "0.1"]
    argv += [str(ROOT / "recipes" / "quickstart.yaml"), "../elsewhere/data", "uoft-cs/cifar10"]
    assert benchmark("machine").command(argv).replace("'", "") == (
        "python benchmarks/x.py --data …/cifar10 --out=…/a.json --lr 0.1 recipes/quickstart.yaml …/data uoft-cs/cifar10"
    )


def test_record(benchmark):
    record = json.loads(json.dumps(benchmark("machine").record()))
    assert set(record) == {"machine", "versions", "date", "command"}
    assert {"python", "torch", "timm", "timm-wsms"} <= set(record["versions"])
    assert record["machine"]["cpu"] and record["machine"]["ram_gib"] > 0 and record["machine"]["cores"] >= 1


@pytest.mark.sweep
def test_train_overhead_runs(benchmark, tmp_path):
    out = tmp_path / "overhead.json"
    benchmark("train_overhead").main(
        ["--models", "resnet20_cifar", "--steps", "2", "--rounds", "2", "--batch_size", "8", "--out", str(out)]
    )
    found = json.loads(out.read_text())["models"]["resnet20_cifar"]
    assert found["ratio"] == pytest.approx(found["script"]["median"] / found["bare"]["median"], abs=1e-4)
    assert (found["rounds"], found["steps_per_round"], len(found["bare"]["each"])) == (2, 2, 2)


@pytest.mark.sweep
def test_stream_runs(benchmark, tmp_path):
    out = tmp_path / "stream.json"
    small = ["--shards", "2", "--images_per_shard", "64", "--workers", "0", "--rounds", "1"]
    benchmark("stream").main([*small, "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["dropped_to_stream"] == pytest.approx(found["dropped"]["median"] / found["stream"]["median"], abs=0.01)
    assert (found["images_per_epoch"], len(found["map_style"]["each"])) == (128, 1)
