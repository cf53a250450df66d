"""The paper's own backbones against networks written out by hand, from their papers' formulas and figures."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from timm_wsms.backbones.avgpool_resnet import AvgPoolResNet
from timm_wsms.backbones.cifar_densenet import CifarDenseNet
from timm_wsms.backbones.cifar_resnet import BasicBlock, CifarResNet

torch.set_num_threads(1)


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


@pytest.mark.parametrize("depth", [8, 20])
def test_cifar_resnet_equals_one_written_by_hand(depth):
    torch.manual_seed(0)
    model = unlike_fresh(CifarResNet(depth)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
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
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
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
    model = AvgPoolResNet((1, 1, 1, 1))
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
    assert all((block.bn3.weight == 1).all() for block in AvgPoolResNet((1, 1, 1, 1)).layer4)


@pytest.mark.parametrize("depth", [2, 9, 19, 21])
def test_resnet_depth_that_does_not_exist(depth):
    with pytest.raises(ValueError, match=rf"6 n \+ 2, not {depth}"):
        CifarResNet(depth)


@pytest.mark.parametrize("depth", [4, 99, 101])
def test_densenet_depth_that_does_not_exist(depth):
    with pytest.raises(ValueError, match=rf"3 n \+ 4, not {depth}"):
        CifarDenseNet(12, depth=depth)
