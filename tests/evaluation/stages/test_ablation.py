"""What a network says without a stage: against the network with that map overwritten, image by image."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import timm_wsms  # noqa: F401  registers the names
from tests.helpers.preprocessing import preprocessing
from timm_wsms.data import DataSettings, Split, make_loader
from timm_wsms.errors import UserError
from timm_wsms.evaluation import predict
from timm_wsms.evaluation.stages.ablation import predict_without_stages, stage_drops
from timm_wsms.object_scaling import rescale_object

CONFIG = preprocessing(32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
FACTORS = (0.5, 1.0, 2.0)


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    return Split(
        "test", rng.integers(0, 10, 17), list("abcdefghij"), pixels=rng.integers(0, 255, (17, 32, 32, 3), "uint8")
    )


def loader(split):
    return make_loader(split, DataSettings(), CONFIG, batch_size=6, train=False)


def build(silent=(), **kwargs):
    """A network that takes images of noise for different classes; the integration layer does not read some channels."""
    torch.manual_seed(0)
    model = timm.create_model("wsms_resnet20_cifar", num_classes=10, **kwargs)
    with torch.no_grad():
        model.integration.conv.weight[:, list(silent)] = 0
        for _ in range(5):
            model(torch.randn(16, 3, 32, 32))  # running statistics
        model.eval()
        model.get_classifier().bias -= model(torch.randn(64, 3, 32, 32)).mean(0)  # no class is the likeliest
    return model.train()


@pytest.mark.parametrize("residual", [False, True])
def test_against_overwritten_maps(accelerator, split, residual):
    model = build(residual=residual)
    got = predict_without_stages(model, loader(split), accelerator, FACTORS)
    assert got.shape == (3, 4, 17) and model.training
    assert all((got[:, stage] != got[:, 0]).any() for stage in (1, 2, 3))
    model.eval()
    images = torch.cat([batch.images for batch in loader(split)])
    for place, factor in enumerate(FACTORS):
        shown = rescale_object(images, factor)
        with torch.no_grad():
            np.testing.assert_array_equal(got[place, 0], model(shown).argmax(1))
            _, maps = model.stage_maps(shown)
            for stage in range(3):
                mean = maps[stage].mean(0, keepdim=True).expand_as(maps[stage])
                mixed = [mean if other == stage else own for other, own in enumerate(maps)]
                merged = model.integration(mixed) + (mixed[0] if residual else 0)
                np.testing.assert_array_equal(got[place, 1 + stage], model.forward_head(merged).argmax(1))


def test_against_overwritten_logits_where_they_are_averaged(accelerator, split):
    torch.manual_seed(0)
    model = timm.create_model("wsms_resnet20_cifar", num_classes=10, fusion="mean", pyramid=[1, 0.5])
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(16, 3, 32, 32))  # running statistics
    got = predict_without_stages(model, loader(split), accelerator, FACTORS)
    assert got.shape == (3, 3, 17) and model.training
    assert all((got[:, stage] != got[:, 0]).any() for stage in (1, 2))
    model.eval()
    images = torch.cat([batch.images for batch in loader(split)])
    for place, factor in enumerate(FACTORS):
        shown = rescale_object(images, factor)
        with torch.no_grad():
            first, second = model.backbone(shown), model.stages["2"].backbone(F.avg_pool2d(shown, 2))
        expected = [first + second, first.mean(0) + second, first + second.mean(0)]
        np.testing.assert_array_equal(got[place], torch.stack(expected).argmax(2))


def test_stage_that_says_nothing_carries_nothing(accelerator, split):
    model = build(range(64, 96), residual=False)  # stage 2's channels
    got = predict_without_stages(model, loader(split), accelerator, FACTORS)
    np.testing.assert_array_equal(got[:, 2], got[:, 0])
    assert (got[:, 1] != got[:, 0]).any() and (got[:, 3] != got[:, 0]).any()


def test_without_the_only_stage_that_speaks_all_images_are_alike(accelerator, split):
    model = build(range(64, 112), residual=False)  # stages 2 and 3
    got = predict_without_stages(model, loader(split), accelerator, FACTORS)
    assert [len(set(got[place, 1])) for place in range(3)] == [1, 1, 1] and len(set(got[1, 0])) > 1


def test_whole_network_is_what_predict_gives(accelerator, split):
    model = build()
    got = predict_without_stages(model, loader(split), accelerator, (1.0,))
    np.testing.assert_array_equal(got[0, 0], predict(model, loader(split), accelerator, 17).predicted)


@pytest.mark.parametrize("name", ["wsms_test_vit", "wsms_efficientvim_m1"])
def test_other_layouts_and_several_features(accelerator, name):
    model = timm.create_model(name, num_classes=10)
    config = {**CONFIG, "input_size": model.default_cfg["input_size"], "crop_pct": 1.0, "interpolation": "bilinear"}
    rng = np.random.default_rng(0)
    split = Split("test", np.arange(3), list("abcdefghij"), pixels=rng.integers(0, 255, (3, 64, 64, 3), "uint8"))
    images = make_loader(split, DataSettings(workers=0), config, batch_size=2, train=False)
    got = predict_without_stages(model, images, accelerator, (1.0,))
    assert got.shape == (1, 4, 3)
    np.testing.assert_array_equal(got[0, 0], predict(model, images, accelerator, 3).predicted)


def test_plain_network_is_refused(accelerator, split):
    with pytest.raises(UserError, match="only a network of several stages"):
        predict_without_stages(timm.create_model("resnet20_cifar"), loader(split), accelerator, FACTORS)


def test_drops_by_hand():
    label = np.array([0, 1, 2, 3])
    predicted = np.array([[[0, 1, 2, 0], [0, 0, 0, 0], [0, 1, 2, 3]]])  # 1 size; whole, without stage 1, without 2
    found = stage_drops(predicted, label, (1.0,))
    assert (found.top1, found.drop) == ([75.0], [[50.0], [-25.0]])
    ((first,), (second,)) = found.interval
    assert first[0] <= 50 <= first[1] and second[0] <= -25 <= second[1] <= 0
