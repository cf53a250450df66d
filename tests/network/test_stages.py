"""Stages: where a backbone is cut, how the stages end, and that they hold nothing else."""

from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import timm_wsms
from tests.helpers.networks import images, randomize, tensors
from tests.helpers.tiers import slow_except
from timm_wsms.network.stages import Level, Stage, end_like, find_taps, is_flat, levels, parts, preactivation_end
from timm_wsms.network.weight_sharing import copy_sharing

torch.set_num_threads(1)


def build(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs)


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def half(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def cut(backbone, level, divisor=2):
    """A stage that takes images of any size."""
    return Stage(copy_sharing(backbone, "batch"), level, 1, False, find_taps(backbone, level, divisor))


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


@pytest.mark.parametrize(
    "depth, stages, expected",
    [
        (12, 3, [11, 7, 3]),  # all of 12 blocks, two thirds, one third
        (8, 3, [7, 5, 2]),  # 8, 5⅓ → 6, 2⅔ → 3 blocks
        (12, 2, [11, 5]),
        (6, 6, [5, 4, 3, 2, 1, 0]),
        (5, 1, [4]),
    ],
)
def test_equal_parts_of_a_backbone_of_one_resolution(depth, stages, expected):
    info = [{"num_chs": 10 + i, "reduction": 16} for i in range(depth)]
    backbone = SimpleNamespace(feature_info=info)
    assert is_flat(backbone)
    assert parts(backbone, stages) == [Level(i, 10 + i, 16) for i in expected]
    info[1]["num_chs_norm"] = 99  # what the last norm makes of it
    assert parts(backbone, depth)[-2] == Level(1, 99, 16)


@pytest.mark.parametrize(
    "reductions, end, divisor, expected",
    [
        ([2, 4, 8, 16, 32], 3, 2, {1: 0, 2: 1, 3: 2, 4: 3}),
        ([2, 4, 8, 16, 32], 2, 4, {2: 0, 3: 1, 4: 2}),
        ([1, 2, 4], 1, 2, {1: 0, 2: 1}),
        ([4, 8, 8, 16], 2, 2, {1: 0, 2: 0, 3: 2}),  # the last of the maps of a resolution
        ([16] * 6, 3, 2, {2: 0, 3: 1, 4: 2, 5: 3}),  # as far before the stage's end as before the backbone's
        ([16] * 6, 1, 4, {4: 0, 5: 1}),
    ],
)
def test_counterparts_of_stage_1s_maps(reductions, end, divisor, expected):
    info = [{"num_chs": 10 + i, "reduction": reduction} for i, reduction in enumerate(reductions)]
    backbone = SimpleNamespace(feature_info=info)
    assert is_flat(backbone) == (len(set(reductions)) == 1)
    assert find_taps(backbone, Level(end, 10 + end, reductions[end]), divisor) == expected


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


@pytest.mark.parametrize("name", slow_except(PREACTIVATION, "densenet100_k24_cifar", "resnetv2_18", "test_nfnet"))
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
            torch.testing.assert_close(stage(x, expected), activation(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "xception41", "regnetx_002"])
def test_stage_of_any_other_backbone_ends_as_its_block_does(name):
    backbone = on_meta(name)
    assert preactivation_end(backbone) is None
    stage = cut(backbone, levels(backbone)[1])
    assert isinstance(stage.end, nn.Identity)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050"])
def test_stage_map_is_the_backbones_own_at_that_level(name):
    backbone = randomize(build(name)).eval()
    x = images()
    with torch.no_grad():
        expected_maps = backbone.forward_intermediates(x, intermediates_only=True)
        for number, level in enumerate(levels(backbone)[1:], start=1):
            expected = expected_maps[level.index]
            found = cut(backbone, level, 2**number).eval()(x, expected)
            assert found.shape == (2, level.channels, 64 // level.reduction, 64 // level.reduction)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", slow_except(["hrnet_w18_small", "efficientvim_m1"], "efficientvim_m1"))
def test_stage_of_a_backbone_that_mixes_resolutions_keeps_its_map_without_what_it_does_not_use(name):
    model = build(f"wsms_{name}").eval()
    x = images(128)
    with torch.no_grad():
        maps = model.backbone.forward_intermediates(x, intermediates_only=True)
        for stage in model.stages.values():
            torch.testing.assert_close(stage(x, maps[stage.index]), maps[stage.index], rtol=0, atol=0)


@pytest.mark.parametrize("name, side", slow_except([("pvt_v2_b0", 64), ("inception_v4", 96)], "pvt_v2_b0"))
def test_image_too_small_for_a_stage_is_padded(name, side):
    """Stage 3 alone would fail. Its map is that of the padded image, without what belongs to the padding."""
    model = build(f"wsms_{name}").eval()
    stage, level = model.stages["3"], levels(model.backbone)[2]
    x = images(side // 4)
    minimum = stage.minimum
    assert side // 4 < minimum
    with torch.no_grad():
        like = model.backbone.forward_intermediates(images(side), intermediates_only=True)[-1]
        padded = F.pad(x, (0, minimum - side // 4, 0, minimum - side // 4))
        expected = model.backbone.forward_intermediates(padded, indices=[level.index], intermediates_only=True,
                                                        stop_early=True)[0]  # fmt: skip
        height = -(-like.shape[-1] * minimum // (side // 4))
        expected = F.interpolate(expected, (height, height), mode="bilinear")[..., : like.shape[-2], : like.shape[-1]]
        torch.testing.assert_close(stage(x, like), expected)


def test_channels_last_stage_gives_maps_with_channels_first():
    backbone = randomize(build("test_mambaout")).eval()
    level = levels(backbone)[1]
    with torch.no_grad():
        x = backbone.stem(images())
        for part in backbone.stages[:3]:
            x = part(x)  # (B, H, W, C)
        found = cut(backbone, level).eval()(images(), x.permute(0, 3, 1, 2))
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
    "test_vit",  # tokens
    "test_vit2",
    "hrnet_w18_small",  # blocks that mix all resolutions
]
FULL_SIZE = ("densenet121", "resnetv2_18", "dla46_c", "ghostnet_050", "cs3darknet_s", "hrnet_w18_small")


@pytest.mark.parametrize("name", slow_except(FAMILIES, *(set(FAMILIES) - set(FULL_SIZE))))
def test_every_parameter_is_used(name):
    """In eval mode with γ = 1: no batch statistics that would cancel a gradient, no branch that is switched off."""
    model = randomize(build(f"wsms_{name}")).eval()
    model(images()).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize(
    "name",
    slow_except(
        ["test_resnet", "densenet121", "mobilenetv3_small_050", "test_mambaout"], "test_resnet", "test_mambaout"
    ),
)
def test_every_stage_uses_all_that_it_holds(name):
    """Stage by stage: a shared parameter's gradient above could have come from another stage."""
    model = randomize(build(f"wsms_{name}")).eval()
    for number, stage in model.stages.items():
        model.zero_grad()
        side = 64 // 2 ** (int(number) - 1)
        stage(images(side), torch.zeros(1, 1, 64 // model.reduction, 64 // model.reduction)).square().sum().backward()
        for key, parameter in stage.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, (number, key)
