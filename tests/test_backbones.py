"""The paper's own backbones: against networks written out by hand, and timm's interface."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from timm_wsms.backbones.avgpool_resnet import AvgPoolResNet
from timm_wsms.backbones.cifar_densenet import CifarDenseNet
from timm_wsms.backbones.cifar_resnet import BasicBlock, CifarResNet

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
    side = SIDES[name]
    return torch.randn(number, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)


def unlike_fresh(model):
    """Norms as after training: none of them the identity."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    return model


def batch_norm(x, weights, key):
    """Eval mode, by its formula."""
    mean, var, weight, bias = (
        weights[f"{key}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def cifar_resnet_by_hand(weights, x, blocks):
    """Maps of the three levels and the logits, from a state dict (He et al. 2016, Section 4.2)."""
    x = F.relu(batch_norm(F.conv2d(x, weights["features.conv0.weight"], padding=1), weights, "features.bn0"))
    maps = []
    for level in (1, 2, 3):
        for block in range(blocks):
            key = f"features.layer{level}.{block}"
            stride = 2 if level > 1 and block == 0 else 1
            shortcut = x
            if stride == 2:  # option A: every second pixel; half of the missing channels before, half behind
                half = torch.zeros(x.shape[0], x.shape[1] // 2, x.shape[2] // 2, x.shape[3] // 2, dtype=x.dtype)
                shortcut = torch.cat((half, x[:, :, 0::2, 0::2], half), 1)
            x = F.conv2d(x, weights[f"{key}.conv1.weight"], stride=stride, padding=1)
            x = F.relu(batch_norm(x, weights, f"{key}.bn1"))
            x = F.conv2d(x, weights[f"{key}.conv2.weight"], padding=1)
            x = F.relu(batch_norm(x, weights, f"{key}.bn2") + shortcut)
        maps.append(x)
    return maps, x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


def cifar_densenet_by_hand(weights, x, layers):
    """Maps of the three dense blocks (the last behind its norm) and the logits, from a state dict."""
    x = F.conv2d(x, weights["features.conv0.weight"], padding=1)
    maps = []
    for block in (1, 2, 3):
        for layer in range(1, layers + 1):
            key = f"features.denseblock{block}.layer{layer}"
            new = F.conv2d(F.relu(batch_norm(x, weights, f"{key}.norm")), weights[f"{key}.conv.weight"], padding=1)
            x = torch.cat((x, new), 1)
        maps.append(x)
        if block < 3:
            key = f"features.transition{block}"
            x = F.conv2d(F.relu(batch_norm(x, weights, f"{key}.norm")), weights[f"{key}.conv.weight"])
            x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    maps[-1] = x = F.relu(batch_norm(x, weights, "features.norm"))
    return maps, x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


def fig_8_bottleneck(block, x):
    """The paper's Fig. 8 as it is drawn: on both paths the pooling stands behind the stride-1 convolution."""
    weights = block.state_dict()
    pooled = lambda x: F.avg_pool2d(x, 2)  # noqa: E731
    main = F.relu(batch_norm(F.conv2d(x, weights["conv1.weight"]), weights, "bn1"))
    main = F.relu(batch_norm(F.conv2d(main, weights["conv2.weight"], padding=1), weights, "bn2"))
    main = batch_norm(F.conv2d(pooled(main), weights["conv3.weight"]), weights, "bn3")
    shortcut = batch_norm(pooled(F.conv2d(x, weights["downsample.1.weight"])), weights, "downsample.2")
    return F.relu(main + shortcut)


# ---- values


@pytest.mark.parametrize("depth", [8, 20])
def test_cifar_resnet_equals_one_written_by_hand(depth):
    torch.manual_seed(0)
    model = unlike_fresh(CifarResNet(depth)).double().eval()
    x = images("resnet20_cifar", dtype=torch.float64)
    expected_maps, expected = cifar_resnet_by_hand(model.state_dict(), x, blocks=(depth - 2) // 6)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)
    last, maps = model.forward_intermediates(x)
    for found, right in zip([*maps, last], [*expected_maps, expected_maps[-1]], strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-10)


def test_option_a_shortcut_of_an_odd_map():
    block = unlike_fresh(BasicBlock(4, 8, stride=2)).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 4, 5, 7)
    constant = batch_norm(torch.zeros(1, 8, 3, 4), block.state_dict(), "bn2")
    expected = constant.clone()
    for row in range(3):
        for column in range(4):
            expected[:, 2:6, row, column] += x[:, :, 2 * row, 2 * column]
    torch.testing.assert_close(block(x), F.relu(expected))


def test_cifar_densenet_equals_one_written_by_hand():
    torch.manual_seed(0)
    model = unlike_fresh(CifarDenseNet(growth_rate=6, depth=13)).double().eval()
    x = images("resnet20_cifar", dtype=torch.float64)
    expected_maps, expected = cifar_densenet_by_hand(model.state_dict(), x, layers=3)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)
    last, maps = model.forward_intermediates(x)
    for found, right in zip([*maps, last], [*expected_maps, expected_maps[-1]], strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layer", ["layer2", "layer3", "layer4"])
def test_avgpool_bottleneck_equals_the_papers_figure(layer):
    block = unlike_fresh(AvgPoolResNet((1, 1, 1, 1)).get_submodule(layer)[0]).double().eval()
    x = torch.randn(2, block.conv1.in_channels, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(block(x), fig_8_bottleneck(block, x), rtol=0, atol=1e-10)


def test_avgpool_resnet_has_no_strides_but_the_stems():
    model = build("resnet50_avgpool")
    leaves = {name: module for name, module in model.named_modules() if next(module.children(), None) is None}
    strided = [name for name, module in leaves.items() if getattr(module, "stride", 1) in (2, (2, 2))]
    pools = [f"layer{level}.0.{path}" for level in (2, 3, 4) for path in ("aa", "downsample.0")]
    assert strided == ["conv1", "maxpool", *pools]
    assert isinstance(model.maxpool, nn.MaxPool2d) and model.maxpool.kernel_size == 3
    assert all(isinstance(model.get_submodule(name), nn.AvgPool2d) for name in pools)


@pytest.mark.parametrize("side", [40, 72, 100])
def test_avgpool_resnet_takes_images_of_any_size(side):
    """Both paths of a block keep the last row of an odd map, as a stride of 2 does: same sizes as ResNet-50."""
    x = torch.zeros(2, 3, side, side, device="meta")
    expected = ResNet(Bottleneck, (1, 1, 1, 1), device="meta").forward_intermediates(x)[1]
    found = AvgPoolResNet((1, 1, 1, 1), device="meta").forward_intermediates(x)[1]
    assert [one.shape for one in found] == [one.shape for one in expected]


def test_pooling_of_an_odd_map_averages_what_is_there():
    block = AvgPoolResNet((1, 1, 1, 1)).layer2[0]
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    expected = torch.tensor([[[[2.0, 3.5], [6.5, 8.0]]]])
    for pool in (block.aa, block.downsample[0]):
        torch.testing.assert_close(pool(x), expected)


@pytest.mark.parametrize("build_one", [lambda: CifarResNet(20), lambda: CifarDenseNet(12, depth=10)])
def test_he_initialization(build_one):
    torch.manual_seed(0)
    for name, module in build_one().named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name


def test_no_zero_initialization_of_the_last_norm():
    assert all((block.bn3.weight == 1).all() for block in build("resnet50_avgpool").layer4)


@pytest.mark.parametrize("depth", [2, 9, 19, 21])
def test_resnet_depth_that_does_not_exist(depth):
    with pytest.raises(ValueError, match=rf"6 n \+ 2, not {depth}"):
        CifarResNet(depth)


@pytest.mark.parametrize("depth", [4, 99, 101])
def test_densenet_depth_that_does_not_exist(depth):
    with pytest.raises(ValueError, match=rf"3 n \+ 4, not {depth}"):
        CifarDenseNet(12, depth=depth)


# ---- timm's interface


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
