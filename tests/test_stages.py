"""Stages: where a backbone is cut, what its stages share, how they end, and that they hold nothing else."""

from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import timm_wsms
from timm_wsms.sharing import copy_sharing, share_dictionaries
from timm_wsms.stages import Level, Stage, end_like, find_taps, levels, preactivation_end

torch.set_num_threads(1)
NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def build(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs)


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def randomize(model):
    """Norms as after training; no layer scale or residual branch that is (nearly) switched off."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.ndim <= 1:
                noise = torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
                signed = name.endswith(("bias", "running_mean"))
                tensor.copy_(noise / 2 - 0.25 if signed else noise + 0.5)
            elif tensor.is_floating_point() and tensor.numel() == max(tensor.shape):  # a scale, (C, 1, 1)
                tensor.copy_(torch.rand(tensor.shape, generator=generator).to(tensor.dtype) + 0.5)
    return model


def images(side=64, number=2, dtype=torch.float32):
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)


def half(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def tensors(module):
    """Every parameter and buffer by name, shared ones under each of their names."""
    return dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])


# ---- levels


@pytest.mark.parametrize(
    "name, expected",
    [
        ("resnet50", [(4, 2048, 32), (3, 1024, 16), (2, 512, 8), (1, 256, 4), (0, 64, 2)]),
        ("convnext_tiny", [(3, 768, 32), (2, 384, 16), (1, 192, 8), (0, 96, 4)]),
        ("densenet121", [(4, 1024, 32), (3, 1024, 16), (2, 512, 8), (1, 256, 4), (0, 64, 2)]),
        ("efficientnet_b0", [(4, 320, 32), (3, 112, 16), (2, 40, 8), (1, 24, 4), (0, 16, 2)]),
        ("resnet20_cifar", [(2, 64, 4), (1, 32, 2), (0, 16, 1)]),
        ("densenet100_k24_cifar", [(2, 2320, 4), (1, 1552, 2), (0, 784, 1)]),  # paper, Section 4.1
        ("resnet50_avgpool", [(4, 2048, 32), (3, 1024, 16), (2, 512, 8), (1, 256, 4), (0, 64, 2)]),
        ("test_mambaout", [(3, 64, 32), (2, 48, 16), (1, 32, 8), (0, 16, 4)]),
        ("vit_tiny_patch16_224", [(11, 192, 16)]),
    ],
)
def test_levels_of_known_backbones(name, expected):
    assert levels(on_meta(name)) == [Level(*level) for level in expected]


@pytest.mark.parametrize(
    "reductions, expected",
    [
        ([2, 4, 8], [2, 1, 0]),
        ([4, 8, 8, 16, 16], [4, 2, 0]),  # the last map of each resolution
        ([2, 4, 16], [2]),  # 8 is missing
        ([4, 16, 32], [2, 1]),
        ([16, 16, 16], [2]),  # one resolution throughout
        ([8, 4, 2], [2]),  # a decoder: it ends in the largest map
        ([1, 3, 9], [2]),
        ([1, 2], [1, 0]),
    ],
)
def test_levels_go_on_as_long_as_maps_are_halved(reductions, expected):
    info = [{"num_chs": 10 + i, "reduction": reduction} for i, reduction in enumerate(reductions)]
    found = levels(SimpleNamespace(feature_info=info))
    assert found == [Level(i, 10 + i, reductions[i]) for i in expected]


# ---- what is shared

UNSHARED = {  # kind of norm that a backbone has: unshared_norms for which each stage has its own
    "test_resnet": ["batch", "all"],  # BatchNorm2d
    "test_efficientnet": ["batch", "all"],  # BatchNormAct2d
    "test_convnext": ["all"],  # LayerNorm, LayerNorm2d
    "test_efficientnet_gn": ["all"],  # GroupNormAct
    "test_efficientnet_ln": ["all"],  # LayerNormAct2d
    "convnext_zepto_rms": ["all"],  # SimpleNorm2d
    "test_efficientnet_evos": ["all"],  # EvoNorm2dS0
}


@pytest.mark.parametrize("unshared_norms", ["batch", "all", "none"])
@pytest.mark.parametrize("name", UNSHARED)
def test_all_but_the_unshared_norms_is_shared(name, unshared_norms):
    backbone = build(name)
    copied = copy_sharing(backbone, unshared_norms)
    original, other = tensors(backbone), tensors(copied)
    assert original.keys() == other.keys()
    own = set()
    for key, tensor in other.items():
        torch.testing.assert_close(tensor, original[key], rtol=0, atol=0)  # a norm starts as a copy
        if tensor is original[key]:
            continue
        assert tensor.data_ptr() != original[key].data_ptr() or not tensor.numel()
        own.add(key)
    norms = {
        f"{path}.{key}"
        for path, module in backbone.named_modules()
        if isinstance(module, NORMS) or "norm" in type(module).__name__.lower()
        for key in [*module._parameters, *module._buffers]
        if f"{path}.{key}" in original
    }
    assert norms
    assert own == (norms if unshared_norms in UNSHARED[name] else set())


def test_modules_are_copies_that_hold_the_same_tensors():
    backbone = build("test_resnet")
    copied = copy_sharing(backbone, "batch")
    share_dictionaries(copied, backbone)
    assert not {id(module) for module in backbone.modules()} & {id(module) for module in copied.modules()}
    assert copied.layer1[0].conv1._parameters is backbone.layer1[0].conv1._parameters
    backbone.layer1[0].conv1.weight = replaced = nn.Parameter(torch.ones_like(backbone.layer1[0].conv1.weight))
    assert copied.layer1[0].conv1.weight is replaced  # what replaces a shared tensor is shared too


def test_network_shares_what_its_stages_have_in_common():
    model = build("wsms_test_resnet")
    own = tensors(model.backbone)
    for stage in model.stages.values():
        for path, module in stage.backbone.named_modules():
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                shared = tensor is own.get(f"{path}.{key}")
                assert tensor is None or shared != isinstance(module, nn.BatchNorm2d), (path, key)
    second, third = tensors(model.stages["2"].backbone), tensors(model.stages["3"].backbone)
    assert third.keys() < second.keys()
    for key in third:  # and no two stages have one norm
        assert (third[key] is second[key]) == (own[key] is second[key])


@pytest.mark.parametrize("prefix, arguments", [("ms_", {}), ("wsms_", {"share_weights": False})])
def test_without_shared_weights_nothing_is_shared(prefix, arguments):
    model = build(f"{prefix}test_resnet", **arguments)
    every = tensors(model)
    assert len({id(tensor) for tensor in every.values()}) == len(every)
    assert len({tensor.untyped_storage().data_ptr() for tensor in every.values()}) == len(every)
    assert model.state_dict().keys() == every.keys()
    compared = 0
    for number in ("2", "3"):
        for key, weight in model.stages[number].backbone.named_parameters():
            if weight.ndim == 4:  # norms start alike
                compared += 1
                assert (weight != model.backbone.get_parameter(key)).float().mean() > 0.99
    assert compared > 10
    with torch.no_grad():
        a, b = model.stages["2"](images()), model.backbone.forward_intermediates(images(), [3])[1][0]
    assert (a - b).abs().max() > 1e-3


# ---- where a stage ends

PREACTIVATION = {  # backbone: the modules whose raw maps stages 2 and 3 end in, and what follows
    "densenet121": ("features.denseblock3", "features.denseblock2", ("norm", F.relu)),
    "densenet100_k24_cifar": ("features.denseblock2", "features.denseblock1", ("norm", F.relu)),
    "resnetv2_18": ("stages.2", "stages.1", ("norm", F.relu)),
    "dpn48b": ("features.conv4_6", "features.conv3_4", ("norm", F.silu)),
    "regnetv_040": ("s3", "s2", ("", F.silu)),
    "test_nfnet": ("stages.2", "stages.1", ("", F.silu)),
    "nf_resnet26": ("stages.2", "stages.1", ("", F.relu)),
    "xception41p": ("blocks.11.stack.conv2", "blocks.2.stack.conv2", ("", F.relu)),
}


def raw_tap(backbone, path, x):
    """What a module of the whole backbone gives for an image."""
    caught = []
    handle = backbone.get_submodule(path).register_forward_hook(lambda _m, _i, output: caught.append(output))
    with torch.no_grad():
        backbone.forward_features(x)
    handle.remove()
    raw = caught[0]
    return torch.cat(raw, 1) if isinstance(raw, tuple) else raw.clone()  # DPN has two paths


def batch_norm(x, norm):
    """Eval mode, by its formula."""
    mean, var, weight, bias = (
        tensor[:, None, None] for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (var + norm.eps).sqrt() * weight + bias


@pytest.mark.parametrize("name", PREACTIVATION)
def test_stage_of_a_preactivation_backbone_ends_in_a_norm_and_activation_of_its_own(name):
    *taps, (norm, activation) = PREACTIVATION[name]
    arguments = {"depth": 10} if name.endswith("_cifar") else {}
    backbone = build(name, **arguments).eval()
    model = randomize(timm_wsms.WsmsNet(lambda: build(name, **arguments), unshared_norms="none")).eval()
    state = {k.removeprefix("backbone."): v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    missing, unexpected = backbone.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"fc.weight", "fc.bias"}  # a head of another width took their place
    x = images(128 if name == "densenet121" else 64)  # a quarter of it has to pass the whole of DenseNet
    for number, tap in zip(("2", "3"), taps, strict=True):
        stage = model.stages[number]
        x = half(x)
        expected = raw_tap(backbone, tap, x)
        if norm:
            assert stage.end.num_features == expected.shape[1]
            assert not {id(tensor) for tensor in tensors(stage.end).values()} & {
                id(tensor) for tensor in tensors(model.backbone).values()
            }
            expected = batch_norm(expected, stage.end)
        else:
            assert not tensors(stage.end)
        with torch.no_grad():
            torch.testing.assert_close(stage(x), activation(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "xception41", "regnetx_002"])
def test_stage_of_any_other_backbone_ends_as_its_block_does(name):
    backbone = on_meta(name)
    assert preactivation_end(backbone) is None
    stage = Stage(copy_sharing(backbone, "batch"), levels(backbone)[1])
    assert isinstance(stage.end, nn.Identity)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050"])
def test_stage_map_is_the_backbones_own_at_that_level(name):
    backbone = randomize(build(name)).eval()
    x = images()
    with torch.no_grad():
        for level in levels(backbone)[1:]:
            stage = Stage(copy_sharing(backbone, "batch"), level).eval()
            expected = backbone.forward_intermediates(x, intermediates_only=True)[level.index]
            found = stage(x)
            assert found.shape == (2, level.channels, 64 // level.reduction, 64 // level.reduction)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_channels_last_stage_gives_maps_with_channels_first():
    backbone = randomize(build("test_mambaout")).eval()
    level = levels(backbone)[1]
    with torch.no_grad():
        found = Stage(copy_sharing(backbone, "batch"), level).eval()(images())
        x = backbone.stem(images())
        for part in backbone.stages[:3]:
            x = part(x)  # (B, H, W, C)
    torch.testing.assert_close(found, x.permute(0, 3, 1, 2))


def test_end_of_another_width():
    norm = build("resnetv2_18").norm
    norm.eps, norm.momentum = 0.25, 0.5
    with torch.no_grad():
        norm.weight.fill_(3)
    new = end_like(norm.double(), 7)
    assert (new.num_features, new.eps, new.momentum, new.weight.dtype) == (7, 0.25, 0.5, torch.float64)
    assert (new.weight == 1).all() and (new.bias == 0).all()  # fresh: another width has nothing to copy
    x = torch.randn(4, 7, 3, 3, dtype=torch.float64)
    expected = F.relu((x - x.mean((0, 2, 3), True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 0.25).sqrt())
    torch.testing.assert_close(new(x), expected)

    group_norm = on_meta("resnetv2_50x1_bit").norm
    new = end_like(group_norm, 64)
    assert (new.num_groups, new.num_channels) == (group_norm.num_groups, 64)
    assert type(new.act) is type(group_norm.act)


# ---- nothing but what a stage uses

FAMILIES = [
    "test_resnet",
    "test_efficientnet",
    "test_efficientnet_gn",
    "test_convnext",
    "test_nfnet",
    "test_mambaout",  # maps (B, H, W, C)
    "test_byobnet",
    "mobilenetv3_small_050",
    "densenet121",
    "regnetx_002",
    "resnetv2_18",
    "dla46_c",
    "ghostnet_050",
    "cs3darknet_s",
    "resnet20_cifar",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_used(name):
    """In eval mode with γ = 1: no batch statistics that would cancel a gradient, no branch that is switched off."""
    model = randomize(build(f"wsms_{name}")).eval()
    model(images()).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ["test_resnet", "densenet121", "mobilenetv3_small_050", "test_mambaout"])
def test_every_stage_uses_all_that_it_holds(name):
    """Stage by stage: a shared parameter's gradient above could have come from another stage."""
    model = randomize(build(f"wsms_{name}")).eval()
    for number, stage in model.stages.items():
        model.zero_grad()
        stage(images(32)).square().sum().backward()
        for key, parameter in stage.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, (number, key)
