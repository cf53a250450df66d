"""benchmarks/object_size/per_stage.py tells stages apart."""

import pytest
import timm
import torch

import timm_wsms  # noqa: F401
from benchmarks.object_size import per_stage
from timm_wsms.data import DataSettings, data_config, load_splits, make_loader

pytestmark = pytest.mark.slow  # a benchmark


def test_each_stage_by_itself(monkeypatch):
    monkeypatch.setattr(per_stage, "SIZES", [1.0])
    torch.manual_seed(0)
    model = timm.create_model("ms_resnet20_cifar", fusion="mean", pyramid=[1, 0.5]).eval()
    images = torch.randn(60, 3, 32, 32)
    first, second = model.backbone, model.stages["2"].backbone
    half = torch.nn.functional.avg_pool2d(images, 2)
    with torch.no_grad():  # classes that the images are spread over
        second.fc = torch.nn.Linear(64, 10)
        first.fc.bias -= first(images).mean(0)
        second.fc.bias -= second(half).mean(0)
        one, two = first(images), second(half)
    labels = two.argmax(1)
    [row] = per_stage.measure(model, images, labels)

    def share(scores):
        return round(100 * (scores.argmax(1) == labels).sum().item() / 60, 2)

    assert row["stages"] == [share(one), 100] and row["stages"][0] < 100
    assert row["mean"] == share(one + two)
    assert row["mean_of_probabilities"] == share(one.softmax(1) + two.softmax(1))
    assert row["std_of_logits"] == [round(one.std().item(), 2), round(two.std().item(), 2)]


@torch.no_grad()
def test_statistics_of_each_stages_own_images():
    torch.manual_seed(0)
    shared = timm.create_model("ms_resnet20_cifar", fusion="mean", pyramid=[1, 0.5], unshared_norms="none")
    shared.backbone.features.bn0.bias += torch.randn(16)
    settings = DataSettings(train_limit=16)
    own = per_stage.with_own_statistics(shared, settings, batch_size=16)
    assert own.backbone.features.conv0.weight.equal(shared.backbone.features.conv0.weight)
    assert own.stages["2"].backbone.features.bn0.bias.data_ptr() == own.backbone.features.bn0.bias.data_ptr()
    assert own.backbone.features.bn0.bias.equal(shared.backbone.features.bn0.bias)
    loader = make_loader(
        load_splits(settings, seed=0)[0], settings, data_config(own, settings), batch_size=16, train=True, seed=0
    )
    [batch] = loader
    for part, images in (
        (own.backbone, batch.images),
        (own.stages["2"].backbone, torch.nn.functional.avg_pool2d(batch.images, 2)),
    ):
        maps = torch.nn.functional.conv2d(images, own.backbone.features.conv0.weight, padding=1)
        torch.testing.assert_close(part.features.bn0.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part.features.bn0.running_var, maps.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
