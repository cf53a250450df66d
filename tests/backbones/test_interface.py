"""The paper's own backbones have timm's interface."""

import copy

import pytest
import timm
import torch
from timm.models import build_model_with_cfg
from torch import nn

from tests.helpers import networks
from timm_wsms.backbones.avgpool_resnet import AvgPoolResNet

torch.set_num_threads(1)

SIDES = {"resnet20_cifar": 32, "densenet100_k24_cifar": 32, "resnet50_avgpool": 64}
each_kind = pytest.mark.parametrize("name", SIDES)


def build(name, **kwargs):
    """One of each kind, as its name builds it but with few layers."""
    torch.manual_seed(0)
    if name == "resnet50_avgpool":
        return build_model_with_cfg(AvgPoolResNet, name, False, layers=(1, 1, 1, 1), **kwargs)
    return timm.create_model(name, **{"depth": 10} if "densenet" in name else {}, **kwargs)


def images(name, number=2, channels=3, dtype=torch.float32):
    return networks.images(SIDES[name], number, dtype=dtype, channels=channels)


def test_listed_by_timm():
    depths = (20, 26, 32, 44, 56, 110, 116, 122)
    assert set(timm.list_models(module="cifar_resnet")) == {f"resnet{depth}_cifar" for depth in depths}
    assert set(timm.list_models(module="cifar_densenet")) == {"densenet100_k24_cifar", "densenet100_k26_cifar"}
    assert set(timm.list_models(module="avgpool_resnet")) == {f"resnet{depth}_avgpool" for depth in (50, 101, 152)}
    assert set(timm.list_models("resnet*_cifar", exclude_filters=["*122*"])) == {
        f"resnet{d}_cifar" for d in depths[:-1]
    }


@each_kind
def test_forward_is_features_then_head(name):
    model, x = build(name).eval(), images(name)
    with torch.no_grad():
        features = model.forward_features(x)
        pre_logits = model.forward_head(features, pre_logits=True)
        assert features.shape[1] == model.num_features
        torch.testing.assert_close(pre_logits, features.mean((2, 3)))
        assert pre_logits.shape[1] == model.head_hidden_size
        classifier = model.get_classifier()
        expected = pre_logits @ classifier.weight.T + classifier.bias
        torch.testing.assert_close(model.forward_head(features), expected)
        torch.testing.assert_close(model(x), expected)


@each_kind
def test_reset_classifier(name):
    model, x = build(name).eval(), images(name)
    with torch.no_grad():
        features = model.forward_features(x)
        model.reset_classifier(7)
        assert model.num_classes == 7 and model(x).shape == (2, 7)
        model.reset_classifier(5, "max")
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.amax((2, 3)))
        assert model(x).shape == (2, 5)
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model(x), features.amax((2, 3)))
        model.reset_classifier(0, "")
        torch.testing.assert_close(model(x), features)


@each_kind
def test_built_without_classifier_or_pooling(name):
    x = images(name)
    whole, features = build(name).eval(), build(name, num_classes=0, global_pool="").eval()
    features.load_state_dict({key: value for key, value in whole.state_dict().items() if not key.startswith("fc.")})
    with torch.no_grad():
        torch.testing.assert_close(features(x), whole.forward_features(x), rtol=0, atol=0)


def test_dropout_in_front_of_the_classifier():
    model, x = build("resnet20_cifar", drop_rate=0.5).train(), images("resnet20_cifar", 16)
    model.reset_classifier(0)
    features = model.forward_features(x).mean((2, 3))
    for module in model.modules():
        module.train(module is model)  # dropout alone
    with torch.no_grad():
        features = model.forward_features(x).mean((2, 3))
        dropped = model(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * features[kept])
    assert 0.4 < kept[features != 0].float().mean() < 0.6


@each_kind
def test_feature_info_is_true(name):
    model, x = build(name).eval(), images(name)
    side = x.shape[-1]
    modules = dict(model.named_modules())
    caught = {}
    for info in model.feature_info:
        modules[info["module"]].register_forward_hook(lambda _m, _i, out, key=info["module"]: caught.update({key: out}))
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        torch.testing.assert_close(last, model.forward_features(x), rtol=0, atol=0)
    assert len(maps) == len(model.feature_info)
    for info, found in zip(model.feature_info, maps, strict=True):
        assert found.shape[1:] == (info["num_chs"], side // info["reduction"], side // info["reduction"])
        torch.testing.assert_close(found, caught[info["module"]], rtol=0, atol=0)


@each_kind
@pytest.mark.parametrize("stop_early", [True, False])
def test_forward_intermediates(name, stop_early):
    model, x = build(name).eval(), images(name)
    with torch.no_grad():
        last, every = model.forward_intermediates(x)
        for indices, expected in ((None, every), ([0, -1], [every[0], every[-1]]), ([1], [every[1]]), (2, every[-2:])):
            end, maps = model.forward_intermediates(x, indices, stop_early=stop_early)
            alone = model.forward_intermediates(x, indices, stop_early=stop_early, intermediates_only=True)
            for found in (maps, alone):
                assert len(found) == len(expected)
                for one, right in zip(found, expected, strict=True):
                    torch.testing.assert_close(one, right, rtol=0, atol=0)
            if indices == [1] and stop_early:
                assert end.shape == every[1].shape  # nothing deeper ran
            else:
                torch.testing.assert_close(end, last, rtol=0, atol=0)


def test_forward_intermediates_knows_one_layout():
    with pytest.raises(ValueError, match="NCHW"):
        build("resnet20_cifar").forward_intermediates(images("resnet20_cifar"), output_fmt="NHWC")


@each_kind
@pytest.mark.parametrize("out_indices", [None, (1,), (0, 2)])
def test_features_only(name, out_indices):
    chosen = {} if out_indices is None else {"out_indices": out_indices}
    x = images(name)
    whole, net = build(name).eval(), build(name, features_only=True, **chosen).eval()
    take = out_indices or range(len(whole.feature_info))
    with torch.no_grad():
        expected = whole.forward_intermediates(x, list(take), intermediates_only=True)  # same seed: same weights
        found = net(x)
    assert net.feature_info.channels() == [whole.feature_info[i]["num_chs"] for i in take]
    assert net.feature_info.reduction() == [whole.feature_info[i]["reduction"] for i in take]
    for one, right in zip(found, expected, strict=True):
        torch.testing.assert_close(one, right, rtol=0, atol=0)


@each_kind
def test_prune_intermediate_layers(name):
    model, x = build(name).eval(), images(name)
    with torch.no_grad():
        expected = model.forward_intermediates(x, [1], intermediates_only=True)[0]
        deeper = model.feature_info[2]["module"]
        assert model.prune_intermediate_layers([1]) == [1]
        torch.testing.assert_close(model.forward_intermediates(x, [1], intermediates_only=True)[0], expected)
    left = [key for key, _ in model.named_parameters() if key.startswith((deeper, "fc."))]
    assert left == []


@each_kind
def test_gradient_checkpointing_changes_no_gradient(name):
    model, x = build(name).double().train(), images(name, dtype=torch.float64)
    again = copy.deepcopy(model)
    again.set_grad_checkpointing()
    model(x).square().sum().backward()
    again(x).square().sum().backward()
    for (key, plain), recomputed in zip(model.named_parameters(), again.parameters(), strict=True):
        assert plain.grad.abs().sum() > 0, key
        torch.testing.assert_close(recomputed.grad, plain.grad, rtol=0, atol=1e-10)
    again.set_grad_checkpointing(False)
    assert not again.grad_checkpointing


@pytest.mark.parametrize("name", ["resnet20_cifar", "densenet100_k24_cifar"])
def test_gradient_checkpointing_recomputes(name):
    """It saves what it promises: the blocks run once forward and once more in the backward pass."""
    model, x = build(name).train(), images(name)
    calls = []
    last_block = model.features[-1] if "resnet" in name else model.features.denseblock3
    first_conv = next(module for module in last_block.modules() if isinstance(module, nn.Conv2d))
    first_conv.register_forward_hook(lambda *_: calls.append(1))
    for enable, runs in ((False, 1), (True, 2)):
        calls.clear()
        model.set_grad_checkpointing(enable)
        model(x).sum().backward()
        assert len(calls) == runs


@each_kind
def test_gray_images(name):
    model = build(name, in_chans=1).eval()
    assert model.get_submodule(model.default_cfg["first_conv"]).in_channels == model.in_chans == 1
    assert model(images(name, channels=1)).shape == (2, model.default_cfg["num_classes"])


@each_kind
def test_default_cfg_is_true(name):
    model = build(name).eval()
    cfg = model.default_cfg
    first_conv, classifier = model.get_submodule(cfg["first_conv"]), model.get_submodule(cfg["classifier"])
    assert isinstance(first_conv, nn.Conv2d) and first_conv.in_channels == 3
    assert classifier is model.get_classifier() and model.get_classifier(name_only=True) == cfg["classifier"]
    assert classifier.out_features == cfg["num_classes"] == model.num_classes
    with torch.device("meta"):
        maps = copy.deepcopy(model).to("meta").forward_features(torch.zeros(1, *cfg["input_size"]))
    assert maps.shape[-2:] == cfg["pool_size"]


@each_kind
def test_group_matcher_groups_every_parameter(name):
    model = build(name)
    for coarse in (False, True):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(groups) == {key for key, _ in model.named_parameters()}
        deepest = max(layer for key, layer in groups.items() if not key.startswith("fc."))
        assert groups["fc.weight"] >= deepest > 0 == groups[model.default_cfg["first_conv"] + ".weight"]
        blocks = [layer for key, layer in groups.items() if "layer" in key or "denseblock" in key]
        assert blocks == sorted(blocks)  # parameters stand in their order in the model


@each_kind
def test_every_parameter_gets_a_gradient(name):
    model = build(name).train()
    model(images(name)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
