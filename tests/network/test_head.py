"""The head, as timm asks of every model."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.networks import EXACT, gradients, images, logits, randomize
from timm_wsms import WsmsNet

HEADS = {
    "test_resnet": {},
    "mobilenetv3_small_050": {},  # a head with layers of its own
    "test_convnext": {},  # a head with a norm of its own
    "test_resnet none": {"integration": "none", "residual": False},
    "test_resnet 24": {"integration_channels": 24, "residual": False},
    "mobilenetv3_small_050 none": {"integration": "none", "residual": False},
    "test_convnext none": {"integration": "none", "residual": False},
    "test_convnext 24": {"integration_channels": 24, "residual": False},
    "test_mambaout none": {"integration": "none", "residual": False},  # maps (B, H, W, C)
    "resnet20_cifar": {},
}
each_head = pytest.mark.parametrize("case", HEADS)


def with_head(case, **kwargs):
    name = case.split()[0]
    torch.manual_seed(0)
    model = randomize(timm.create_model(f"wsms_{name}", **HEADS[case], **kwargs)).eval()
    assert (model.head is None) == (case == name and not name.endswith("_cifar"))
    return name, model


def timms_head(name, model, *reset):
    """Timm's own head on the same weights, after `reset_classifier` with these arguments if there are any."""
    backbone = timm.create_model(name, num_classes=model.backbone.num_classes).eval()
    backbone.load_state_dict(model.backbone.state_dict())
    if reset:
        backbone.reset_classifier(*reset)
    return backbone.forward_head


def features_of(model, x):
    features = model.forward_features(x)
    return features.permute(0, 3, 1, 2) if model.layout == "NHWC" else features


@each_head
def test_forward_is_features_then_head(case):
    name, model = with_head(case, num_classes=11)
    x = images()
    with torch.no_grad():
        features = model.forward_features(x)
        pre_logits = model.forward_head(features, pre_logits=True)
        found = model.forward_head(features)
        assert features_of(model, x).shape[1] == model.num_features
        assert pre_logits.shape == (2, model.head_hidden_size)
        if model.head is None:
            head = timms_head(name, model)
            torch.testing.assert_close(pre_logits, head(features, pre_logits=True), **EXACT)
            torch.testing.assert_close(found, head(features), **EXACT)
        else:
            torch.testing.assert_close(pre_logits, features_of(model, x).mean((2, 3)))
            classifier = model.get_classifier()
            torch.testing.assert_close(found, F.linear(pre_logits, classifier.weight, classifier.bias))
        torch.testing.assert_close(model(x), found, **EXACT)
        assert found.shape == (2, 11) == (2, model.num_classes)


@each_head
def test_get_classifier(case):
    _, model = with_head(case, num_classes=11)
    classifier = model.get_classifier()
    assert isinstance(classifier, nn.Linear)
    assert (classifier.in_features, classifier.out_features) == (model.head_hidden_size, 11)
    assert model.get_submodule(model.get_classifier(name_only=True)) is classifier
    assert model.default_cfg["classifier"] == model.get_classifier(name_only=True)


@each_head
def test_reset_classifier(case):
    name, model = with_head(case)
    x = images()
    with torch.no_grad():
        features, maps = model.forward_features(x), features_of(model, x)
        pre_logits = model.forward_head(features, pre_logits=True)
        model.reset_classifier(7)
        assert model.num_classes == 7 and model(x).shape == (2, 7)
        assert model.get_classifier().out_features == 7
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), pre_logits, **EXACT)
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model(x), pre_logits, **EXACT)
        model.reset_classifier(3)  # and back
        assert model.num_classes == 3 and model(x).shape == (2, 3)
        model.reset_classifier(0, "")
        assert model.num_classes == 0
        found = model(x)
    if model.head is None:
        torch.testing.assert_close(found, timms_head(name, with_head(case)[1], 0, "")(features), **EXACT)
    else:
        torch.testing.assert_close(found, maps.permute(0, 2, 3, 1) if model.layout == "NHWC" else maps, **EXACT)


@each_head
def test_other_pooling(case):
    name, model = with_head(case, num_classes=6)
    other = "avgmax" if "mobilenet" in name else "max"
    x = images()
    with torch.no_grad():
        features = model.forward_features(x)
        if model.head is None:
            expected = timms_head(name, model, 0, other)(features)
        else:
            maps = features_of(model, x)
            expected = maps.amax((2, 3)) if other == "max" else (maps.amax((2, 3)) + maps.mean((2, 3))) / 2
        model.reset_classifier(0, other)
        torch.testing.assert_close(model(x), expected)
        assert model.global_pool == other


@each_head
def test_every_parameter_gets_a_gradient(case):
    """A head of another width leaves nothing behind of the backbone's own."""
    _, model = with_head(case, num_classes=6)
    for name, gradient in gradients(model, images()).items():
        assert gradient.abs().max() > 0, name


def test_dropout_and_mode_of_a_head_of_another_width():
    _, model = with_head("test_resnet none", num_classes=0, drop_rate=0.5)
    with torch.no_grad():
        features = model.forward_features(images(number=8)).relu() + 1
        assert torch.equal(model.forward_head(features), features.mean((2, 3)))  # eval
        dropped = model.train().forward_head(features)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * features.mean((2, 3))[kept])
    assert 0.4 < kept.float().mean() < 0.6


def test_one_stage_is_the_backbone():
    torch.manual_seed(0)
    backbone = randomize(timm.create_model("test_resnet", num_classes=5)).eval()
    model = WsmsNet(lambda: backbone, stages=1)
    assert {key.removeprefix("backbone.") for key in model.state_dict()} == set(backbone.state_dict())
    torch.testing.assert_close(logits(model), logits(backbone), **EXACT)
    assert (model.num_features, model.head_hidden_size, model.num_classes) == (96, 96, 5)
