"""benchmarks/mean_stages.py tells stages apart."""

import sys
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import mean_stages

import timm_wsms  # noqa: F401


def test_each_stage_by_itself(monkeypatch):
    monkeypatch.setattr(mean_stages, "SIZES", [1.0])
    torch.manual_seed(0)
    model = timm.create_model("wsms_resnet20_cifar", fusion="mean", pyramid=[1, 0.5]).eval()
    images = torch.randn(60, 3, 32, 32)
    first, second = model.backbone, model.stages["2"].backbone
    half = torch.nn.functional.avg_pool2d(images, 2)
    with torch.no_grad():  # classes that the images are spread over
        second.fc = torch.nn.Linear(64, 10)
        first.fc.bias -= first(images).mean(0)
        second.fc.bias -= second(half).mean(0)
        one, two = first(images), second(half)
    labels = two.argmax(1)
    [row] = mean_stages.measure(model, images, labels)

    def share(scores):
        return round(100 * (scores.argmax(1) == labels).sum().item() / 60, 2)

    assert row["stages"] == [share(one), 100] and row["stages"][0] < 100
    assert row["mean"] == share(one + two)
    assert row["mean_of_probabilities"] == share(one.softmax(1) + two.softmax(1))
    assert row["std_of_logits"] == [round(one.std().item(), 2), round(two.std().item(), 2)]
