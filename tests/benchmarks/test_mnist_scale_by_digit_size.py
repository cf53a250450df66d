"""benchmarks/mnist_scale/by_digit_size.py tells digits apart by their size, and what stages have to do with it."""

import base64
import json

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image

import timm_wsms  # noqa: F401
from benchmarks.mnist_scale import by_digit_size
from benchmarks.mnist_scale import data as mnist_scale_data

pytestmark = pytest.mark.slow  # a benchmark

SPLITS = {"train": 10, "validation": 10, "test": 60}


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A data set like MNIST of 100 digits, white squares of 20 pixels."""
    folder = tmp_path_factory.mktemp("mnist")
    square = np.zeros((28, 28), np.uint8)
    square[4:24, 4:24] = 255
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[*"0123456789"])})
    for split, first, count in (("train", 0, 70), ("test", 70, 30)):
        columns = {"image": [Image.fromarray(square)] * count, "label": [i % 10 for i in range(first, first + count)]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_sizes_drawn_are_those_of_the_images(mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist_scale_data, "SPLITS", SPLITS)
    mnist_scale_data.make(str(mnist), 3, tmp_path / "made")
    images = datasets.load_dataset(str(tmp_path / "made"), split="test")["image"]
    sides = [np.sqrt(np.asarray(image).astype(float).sum() / 255) / 20 for image in images]
    factors, splits = mnist_scale_data.draw(np.arange(100) % 10, 3)
    assert factors[splits["test"]] == pytest.approx(sides, abs=0.03) and np.ptp(sides) > 0.5


def test_errors_by_size():
    size = np.array([0.3, 0.39, 0.4, 0.45, 0.55, 0.65, 0.75, 0.85, 0.9, 0.95, 0.999, 0.91])
    right = np.array([0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1])
    assert by_digit_size.errors(right, size) == {"all": 41.667, "by_size": [50, 100, 0, 0, 0, 100, 25]}


def test_each_stage_alone_and_all_without_it():
    torch.manual_seed(0)
    model = timm.create_model("wsms_mnist_cnn", fusion="mean", pyramid=[1, 0.5], channels=[4, 6, 8])
    images = torch.randn(300, 1, 28, 28)
    size = np.linspace(0.3, 1, 300)
    with torch.no_grad():
        for _ in range(20):  # running statistics
            model(images)
        model.eval().get_classifier().bias -= model(images).mean(0)  # classes that the images are spread over
        one, two = model.backbone(images), model.stages["2"].backbone(torch.nn.functional.avg_pool2d(images, 2))
        labels = (3 * one + two).argmax(1)
        found = by_digit_size.of_stages(model, images, labels, size)

    def expected(logits):
        return by_digit_size.errors((logits.argmax(1) == labels).numpy(), size)

    assert found["whole"] == expected(one + two)
    assert found["alone"] == [expected(one), expected(two)]
    assert found["without"] == [expected(one.mean(0) + two), expected(one + two.mean(0))]
    assert len({row["all"] for row in [found["whole"], *found["alone"], *found["without"]]}) > 2


def test_the_report(mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist_scale_data, "SPLITS", SPLITS)
    runs, records = tmp_path / "runs", tmp_path / "records"
    mnist_scale_data.make(str(mnist), 0, runs / "data" / "seed0")
    factors, splits = mnist_scale_data.draw(np.arange(100) % 10, 0)
    size = factors[splits["test"]]
    records.mkdir()
    for name, right in (("plain_28_seed0", size >= 0.5), ("another", size >= 0.4)):
        packed = [base64.b64encode(np.packbits(right).tobytes()).decode()]
        told = {"form": "f", "group": "28", "seed": 0, "test_images": 60, "sizes": [1.0], "recognized": packed}
        (records / f"{name}.json").write_text(json.dumps(told))
    for name, kwargs in (("mean_1_0.5", {"fusion": "mean", "pyramid": [1, 0.5]}), ("concat", {}), ("plain", None)):
        model = timm.create_model("mnist_cnn" if kwargs is None else "wsms_mnist_cnn", num_classes=10, **(kwargs or {}))
        timm.models.save_for_hf(model, runs / f"{name}_28_seed0" / "model", safe_serialization=True, model_args=kwargs)
    words = ["--source", str(mnist), "--runs", str(runs), "--records", str(records), "--test_images", "50"]
    by_digit_size.main([*words, "--out", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    [row] = report["forms"]
    assert (row["form"], row["group"], row["n"]) == ("f", "28", 2)
    assert [at["mean"] for at in row["errors"]] == [100, 50, 0, 0, 0, 0, 0]
    told = [(row["form"], row["seed"], len(row["without"]), len(row["alone"])) for row in report["stages"]]
    assert {row["plain"]["all"] for row in report["stages"]} == {round(100 * (size[:50] < 0.5).mean(), 3)}
    assert told == [("concat", 0, 3, 0), ("mean 1 0.5", 0, 2, 2)]
    (records / "plain_28_seed0.json").unlink()
    with pytest.raises(SystemExit, match="--forms plain --groups '28' --seeds 0 first"):
        by_digit_size.main([*words, "--out", str(tmp_path / "out.json")])
