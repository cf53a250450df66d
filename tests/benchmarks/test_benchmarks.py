"""What a results file says about its origin, and that the benchmarks of training loop and input pipeline run."""

import importlib
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow  # a benchmark


@pytest.fixture
def benchmark():
    """Imports a script of benchmarks/."""
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_command_holds_no_paths_of_this_machine(benchmark, tmp_path):
    argv = ["benchmarks/x.py", "--data", str(tmp_path / "cifar10"), f"--out={tmp_path}/a.json", "--lr", "0.1"]
    argv += [str(ROOT / "recipes" / "quickstart.yaml"), "../elsewhere/data", "uoft-cs/cifar10"]
    assert benchmark("common.environment").command(argv).replace("'", "") == (
        "python benchmarks/x.py --data …/cifar10 --out=…/a.json --lr 0.1 recipes/quickstart.yaml …/data uoft-cs/cifar10"
    )


def test_record(benchmark):
    record = json.loads(json.dumps(benchmark("common.environment").record()))
    assert set(record) == {"machine", "versions", "date", "command"}
    assert {"python", "torch", "timm", "timm-wsms"} <= set(record["versions"])
    assert record["machine"]["cpu"] and record["machine"]["ram_gib"] > 0 and record["machine"]["cores"] >= 1


@pytest.mark.sweep
def test_train_overhead_runs(benchmark, tmp_path):
    out = tmp_path / "overhead.json"
    benchmark("speed.training_loop").main(
        ["--models", "resnet20_cifar", "--steps", "2", "--rounds", "2", "--batch_size", "8", "--out", str(out)]
    )
    found = json.loads(out.read_text())["models"]["resnet20_cifar"]
    assert found["ratio"] == pytest.approx(found["script"]["median"] / found["bare"]["median"], abs=1e-4)
    assert (found["rounds"], found["steps_per_round"], len(found["bare"]["each"])) == (2, 2, 2)


@pytest.mark.sweep
def test_input_pipeline_runs(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    photographs = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    columns = {"image": [Image.fromarray(pixels) for pixels in photographs], "label": [0, 1, 0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for split in ("train", "test"):
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "source" / f"{split}.parquet")
    out = tmp_path / "input.json"
    arguments = ["--source", str(tmp_path / "source"), "--images", "40", "--large", "40", "--rounds", "2"]
    benchmark("speed.input_pipeline").main([*arguments, "--out", str(out)])
    for of_set in json.loads(out.read_text())["sets"].values():
        found = of_set["found"]
        assert {"fast", "full", "timm", "timm_uint8_jitter", "torchvision", "stage_decode", "bound"} <= found.keys()
        assert found["timm"]["of_timm_cpu"] == found["timm_jitter"]["of_timm_wall"] == 1
        assert found["bound"]["cpu_ms"] == pytest.approx(
            found["fast"]["cpu_ms"] - found["stage_decode"]["cpu_ms"], abs=2e-3
        )
        assert of_set["fast_minus_full_pixels"]["mean"] < 8


def test_images_of_the_input_benchmark_are_photographs_to_a_decoder(benchmark, tmp_path, monkeypatch):
    images = benchmark("speed.input_images")
    monkeypatch.setattr(images, "FIELDS", 2)
    monkeypatch.setattr(images, "SIDE", 1024)
    assert sum(images.SIZES.values()) == pytest.approx(1)
    means = [sum(size[side] * share for size, share in images.SIZES.items()) for side in (0, 1)]
    assert means == pytest.approx([500, 400], rel=0.02)
    photographs = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    found = images.write_images(tmp_path, 6, photographs, amplitude=32, size=(500, 375))
    files = sorted(tmp_path.glob("class?/*.jpg"))
    assert found["count"] == len(files) == 6 and {Image.open(file).size for file in files} == {(500, 375)}
    assert 60 < found["kb"] < 180  # flat color would make 3 KB, white noise 200
    field = images.noise(256, np.random.default_rng(0))
    power = np.abs(np.fft.fft(field, axis=1)[:, 1:128]).mean(axis=0) ** 2
    assert power[:4].mean() > 20 * power[60:].mean()


@pytest.mark.sweep
def test_stream_runs(benchmark, tmp_path):
    out = tmp_path / "stream.json"
    small = ["--shards", "2", "--images_per_shard", "64", "--workers", "0", "--rounds", "1"]
    benchmark("reliability.stream").main([*small, "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["dropped_to_stream"] == pytest.approx(found["dropped"]["median"] / found["stream"]["median"], abs=0.01)
    assert (found["images_per_epoch"], len(found["map_style"]["each"])) == (128, 1)


def test_run_all_names_every_command():
    text = (ROOT / "benchmarks" / "run_all.sh").read_text(encoding="utf-8")
    commands = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "benchmarks").rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    called = {"benchmarks.mnist_scale.data", "benchmarks.common.fourier_convolution"}  # another calls it
    assert {name for name in commands - called if f'"$PYTHON" -m {name}' not in text} == set()
