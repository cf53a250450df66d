"""What `fuse` folds and what it leaves, against the network as it was."""

import copy
import logging

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d, freeze_batch_norm_2d
from torch import nn

import timm_wsms  # registers the names
from tests.helpers.networks import batch_norms, images
from tests.helpers.tiers import slow_except
from timm_wsms.network.fuse import fuse

# Batch norms that stay in stages 1, 2, 3, counted by hand: those that follow an addition, a concatenation, a pooling.
NONE = (0, 0, 0)
LEFT = {
    "resnet18": NONE,
    "resnet20_cifar": NONE,
    # the first of each layer, of each transition, the last
    "densenet121": (6 + 12 + 24 + 16 + 3 + 1, 6 + 12 + 24 + 2 + 1, 6 + 12 + 1 + 1),
    "resnetv2_18": (8 + 1, 6 + 1, 4 + 1),  # the first of each block, the last
    "efficientnet_b0": NONE,
    "tf_efficientnet_b0": NONE,  # Conv2dSame
    "mobilenetv3_small_050": NONE,
    "regnety_002": NONE,
    "hardcorenas_a": NONE,
    "repvgg_a0": NONE,
    "mobileone_s0": NONE,
    "fastvit_t8": NONE,
    "repghostnet_050": (1, 0, 0),  # the stem's: forward_intermediates gives the map in front of it
}
QUICK = ("resnet20_cifar", "resnetv2_18", "mobilenetv3_small_050", "regnety_002", "repghostnet_050")


def randomize_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics, biases and weights, some of them negative, that no default would hide."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=like.dtype)

    with torch.no_grad():
        for norm in batch_norms(model):
            if norm.running_mean is not None:
                norm.running_mean.copy_(draw(norm.running_mean, -0.3, 0.3))
                norm.running_var.copy_(draw(norm.running_var, 0.5, 1.5))
            if norm.weight is not None:
                norm.weight.copy_(draw(norm.weight, 0.5, 1.5) * torch.where(draw(norm.weight, 0, 1) < 0.2, -1, 1))
                norm.bias.copy_(draw(norm.bias, -0.3, 0.3))
        for name, parameter in model.named_parameters():
            if name.endswith("integration.gamma"):
                parameter.copy_(draw(parameter, 0.5, 1.5))
    return model.eval()


def image(side: int = 64, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return images(side, seed=seed, dtype=dtype)


@pytest.mark.parametrize("name", slow_except(LEFT, *QUICK))
@pytest.mark.parametrize("prefix", ["", "wsms_"])
def test_outputs_stay_and_the_norms_go(name, prefix):
    model = randomize_norms(timm.create_model(prefix + name, num_classes=7).double())
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model, image())

    logits = model(image())
    torch.testing.assert_close(fused(image()), logits, rtol=1e-9, atol=1e-9 * logits.abs().max().item())
    stages = ("backbone", "stages.2", "stages.3") if prefix else ("",)
    left = tuple(len(batch_norms(fused.get_submodule(stage))) for stage in stages)
    assert left == LEFT[name][: len(stages)]
    assert len(batch_norms(fused)) == sum(left)  # none in the integration layer
    assert not fused.training and not any(parameter.requires_grad for parameter in fused.parameters())
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize(
    "name",
    slow_except(
        ["wsms_resnet18", "wsms_densenet121", "wsms_efficientnet_b0", "wsms_regnety_002"],
        "wsms_regnety_002",
    ),
)
def test_outputs_in_float32(name):
    model = randomize_norms(timm.create_model(name, num_classes=7))
    fused, x = fuse(model, image().float()), image().float()
    logits = model(x)
    tolerance = {"rtol": 0, "atol": 1e-5 * max(1, logits.abs().max().item())}
    torch.testing.assert_close(fused(x), logits, **tolerance)
    by_channel = fused.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(by_channel, logits, **tolerance)
    other_size = image(96).float()
    torch.testing.assert_close(fused(other_size), model(other_size), **tolerance)
    half = fused.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - logits).norm() < 0.1 * logits.norm()


@pytest.mark.parametrize(
    "name",
    slow_except(
        ["wsms_levit_128s", "tiny_vit_5m_224", "wsms_repvit_m0_9", "wsms_test_resnet"],
        "wsms_test_resnet",
    ),
)
def test_blocks_that_timm_deploys_and_the_default_image(name):
    model = randomize_norms(timm.create_model(name).double())
    fused, x = fuse(model), image(model.pretrained_cfg["input_size"][-1])
    logits = model(x)  # timm's own `fuse` methods work in float32
    torch.testing.assert_close(fused(x), logits, rtol=0, atol=1e-5 * logits.abs().max().item())
    assert batch_norms(model) and not batch_norms(fused)
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.float64}


def test_each_stage_gets_weights_of_its_own():
    model = randomize_norms(timm.create_model("wsms_resnet18"))
    fused = fuse(model, image().float())
    for number in ("2", "3"):
        theirs, own = fused.backbone.conv1, fused.stages[number].backbone.conv1
        norm = model.stages[number].backbone.bn1
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        torch.testing.assert_close(own.weight, model.backbone.conv1.weight * factor[:, None, None, None])
        assert not torch.equal(own.weight, theirs.weight)
    copied = timm.create_model("wsms_resnet18")
    copied = fuse(copied, image().float())
    copied.load_state_dict(fused.state_dict())  # nothing is lost between stages
    assert torch.equal(copied(image().float()), fused(image().float()))


def test_maps_on_the_way_stay():
    # the stem's convolution, a map that forward_intermediates gives, is read by nothing but the first block's norm
    form = {"layers": (1, 1), "channels": (32, 64), "stem_type": "", "norm_layer": BatchNormAct2d}
    model = randomize_norms(timm.create_model("resnetv2_50", **form).double())
    fused = fuse(model, image())
    for map_before, map_after in zip(
        model.forward_intermediates(image())[1], fused.forward_intermediates(image())[1], strict=True
    ):
        torch.testing.assert_close(map_after, map_before, rtol=1e-9, atol=1e-9)
    pyramid = randomize_norms(timm.create_model("densenet121", features_only=True).double())
    for map_before, map_after in zip(pyramid(image()), fuse(pyramid, image())(image()), strict=True):
        torch.testing.assert_close(map_after, map_before, rtol=1e-9, atol=1e-9)


class Toy(nn.Module):
    """Two layers and a norm, put together by a function.

    Args:
        layer: Reads the image.
        run: (this, x) → y.
        norm: Of what.
    """

    def __init__(self, layer: nn.Module, run, norm: nn.Module):
        super().__init__()
        self.layer, self.norm, self.run = layer, norm, run
        self.other = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.BatchNorm2d(6)

    def forward(self, x):
        return self.run(self, x)


def plain(net, x):
    return net.norm(net.layer(x))


def read_twice(net, x):
    y = net.layer(x)
    return net.norm(y) + y


def written_between(net, x):
    return net.norm(net.layer(x).relu_())


def two_layers_one_norm(net, x):
    return net.norm(net.layer(x)) + net.norm(net.other(x))


def one_layer_two_norms(net, x):
    return net.norm(net.layer(x)) + net.second(net.layer(x))


def given_out(net, x):
    y = net.layer(x)
    return y, net.norm(y)


def called_twice(net, x):
    return net.norm(net.layer(x)) + net.norm(net.layer(x.flip(-1)))


def on_tokens(net, x):
    return net.norm(net.layer(x[:, :, 0]))  # (B, 3, N): the norm is over 3, the layer's channels are N


def on_vectors(net, x):
    return net.norm(net.layer(x[:, :, 0, 0]))


def conv(**kwargs) -> nn.Conv2d:
    return nn.Conv2d(3, 6, 3, padding=1, **kwargs)


def watched() -> nn.Conv2d:
    layer = conv()
    layer.register_forward_hook(lambda _module, _args, output: output * 2)
    return layer


TOYS = {  # what: (layer, run, norm, is it folded?)
    "plain": (conv, plain, lambda: nn.BatchNorm2d(6), True),
    "no bias": (lambda: conv(bias=False), plain, lambda: nn.BatchNorm2d(6), True),
    "reflected border": (lambda: conv(padding_mode="reflect"), plain, lambda: nn.BatchNorm2d(6), True),
    "groups": (lambda: conv(groups=3), plain, lambda: nn.BatchNorm2d(6), True),
    "no affine": (conv, plain, lambda: nn.BatchNorm2d(6, affine=False), True),
    "activation": (conv, plain, lambda: BatchNormAct2d(6, act_layer=nn.GELU), True),
    "activation and dropout": (conv, plain, lambda: BatchNormAct2d(6, drop_layer=nn.Dropout), True),
    "same padding": (lambda: Conv2dSame(3, 6, 3, stride=2), plain, lambda: nn.BatchNorm2d(6), True),
    "linear": (lambda: nn.Linear(3, 6), on_vectors, lambda: nn.BatchNorm1d(6), True),
    "called twice": (conv, called_twice, lambda: nn.BatchNorm2d(6), True),
    "linear on tokens": (lambda: nn.Linear(16, 3), on_tokens, lambda: nn.BatchNorm1d(3), False),
    "no statistics": (conv, plain, lambda: nn.BatchNorm2d(6, track_running_stats=False), False),
    "standardized weights": (lambda: StdConv2d(3, 6, 3, padding=1), plain, lambda: nn.BatchNorm2d(6), False),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(conv()), plain, lambda: nn.BatchNorm2d(6), False),
    "read twice": (conv, read_twice, lambda: nn.BatchNorm2d(6), False),
    "written between": (conv, written_between, lambda: nn.BatchNorm2d(6), False),
    "two layers, one norm": (conv, two_layers_one_norm, lambda: nn.BatchNorm2d(6), False),
    "one layer, two norms": (conv, one_layer_two_norms, lambda: nn.BatchNorm2d(6), False),
    "given out": (conv, given_out, lambda: nn.BatchNorm2d(6), False),
    "hook": (watched, plain, lambda: nn.BatchNorm2d(6), False),
    "group norm": (conv, plain, lambda: nn.GroupNorm(2, 6), False),
}


@pytest.mark.parametrize("what", TOYS)
def test_only_a_norm_that_alone_reads_a_layer_is_folded(what, caplog):
    layer, run, norm, folded = TOYS[what]
    model = randomize_norms(Toy(layer(), run, norm()).double())
    with caplog.at_level(logging.WARNING, "timm_wsms"):
        fused = fuse(model, image(16))
    torch.testing.assert_close(fused(image(16)), model(image(16)), rtol=1e-10, atol=1e-10)
    assert (type(fused.norm) is not type(model.norm)) == folded
    assert ("nothing was changed" in caplog.text) != folded


def test_frozen_norms_are_folded_too():
    model = freeze_batch_norm_2d(randomize_norms(timm.create_model("wsms_test_resnet").double()))
    fused = fuse(model, image())
    torch.testing.assert_close(fused(image()), model(image()), rtol=1e-9, atol=1e-9)
    assert not any("running_var" in module._buffers for module in fused.modules())


def test_a_network_in_training_with_checkpointing():
    model = randomize_norms(timm.create_model("wsms_test_resnet").double())
    expected = model(image())
    model.set_grad_checkpointing()
    model.train()
    fused = fuse(model, image())
    torch.testing.assert_close(fused(image()), expected, rtol=1e-9, atol=1e-9)
    assert model.training and not batch_norms(fused)


def test_nothing_to_fold_is_said(caplog):
    model = timm.create_model("test_nfnet").eval()
    with caplog.at_level(logging.WARNING, "timm_wsms"):
        fused = fuse(model)
    assert "no batch norm" in caplog.text and fused is not model
    assert torch.equal(fused(image().float()), model(image().float()))


def test_mistakes():
    with pytest.raises(timm_wsms.UserError, match="give fuse a batch"):
        fuse(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)))
    with pytest.raises(timm_wsms.UserError, match="does not run on images of"):
        fuse(timm.create_model("test_resnet"), torch.zeros(1, 4, 32, 32))
