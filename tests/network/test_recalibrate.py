"""`recalibrate` against means and variances taken by hand over all that reached a norm."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import timm_wsms
from tests.helpers.networks import batch_norms
from timm_wsms.data.loader import Batch
from timm_wsms.network.recalibrate import recalibrate

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}
SIZES = (5, 4, 3)  # a smaller last batch must not count more than its images


def network(name: str = "wsms_test_resnet", **kwargs) -> timm_wsms.WsmsNet:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs).double()
    for norm in batch_norms(model):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
        norm.num_batches_tracked.fill_(77)
    return model


def images(sizes=SIZES, side: int = 64, offset: float = 0.5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randn(size, 3, side, side, generator=generator, dtype=torch.float64) for size in sizes]
    return [offset * number + (1 + number) * x for number, x in enumerate(draw)]  # batches that differ


def statistics(values: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance of each channel over maps (B, C, h, w)."""
    channels = torch.cat([x.transpose(0, 1).flatten(1) for x in values], 1)  # (C, values)
    mean = channels.sum(1) / channels.shape[1]
    return mean, ((channels - mean[:, None]) ** 2).sum(1) / (channels.shape[1] - 1)


def assert_has(norm: nn.Module, values: list[torch.Tensor]) -> None:
    mean, variance = statistics(values)
    torch.testing.assert_close(norm.running_mean, mean, **TOLERANCE)
    torch.testing.assert_close(norm.running_var, variance, **TOLERANCE)
    assert norm.num_batches_tracked == len(values)


def by_batch(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Normalization by the batch, written out."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


@torch.no_grad()
def test_the_first_norms_of_the_stages_and_the_integrations_by_hand():
    model = network("wsms_resnet18", residual=False)
    model.eval()
    before = copy.deepcopy(model)
    assert recalibrate(model, images()) == len(batch_norms(model.stages)) + 1

    seen: dict[str, list[torch.Tensor]] = {"2": [], "2.layer1": [], "3": [], "integration": []}
    for x in images():
        maps = [before.backbone.forward_features(x)]  # with stage 1's own statistics
        half = F.avg_pool2d(x, 2)
        for number, image in (("2", half), ("3", F.avg_pool2d(half, 2))):
            net = before.stages[number].backbone
            seen[number].append(net.conv1(image))
            if number == "2":
                stem = F.max_pool2d(F.relu(by_batch(net.bn1, net.conv1(image))), 3, 2, 1)
                seen["2.layer1"].append(net.layer1[0].conv1(stem))
            net.train()
            maps.append(before.stages[number](image, maps[0]))
        seen["integration"].append(before.integration.conv(torch.cat(maps, 1)))
    assert_has(model.stages["2"].backbone.bn1, seen["2"])
    assert_has(model.stages["2"].backbone.layer1[0].bn1, seen["2.layer1"])
    assert_has(model.stages["3"].backbone.bn1, seen["3"])
    assert_has(model.integration.norm, seen["integration"])


@pytest.mark.parametrize("name", ["wsms_test_resnet", "wsms_test_efficientnet", "wsms_resnetv2_18"])
@pytest.mark.parametrize("share_weights", [True, False])
@torch.no_grad()
def test_every_norm_has_the_statistics_of_what_reached_it_in_training(name, share_weights):
    side = 64
    model = network(name, share_weights=share_weights)
    reference = copy.deepcopy(model).eval()
    recalibrate(model, images(side=side))

    seen: dict[str, list[torch.Tensor]] = {}
    for path, module in reference.named_modules():
        if path.startswith(("stages.", "integration.")) and "running_mean" in module._buffers:
            module.train()
            module.register_forward_pre_hook(lambda _, args, path=path: seen.setdefault(path, []).append(args[0]))
    for x in images(side=side):
        reference(x)
    assert len(seen) == len(batch_norms(model.stages)) + 1
    for path, values in seen.items():
        assert_has(model.get_submodule(path), values)


@torch.no_grad()
def test_nothing_else_changes():
    model = network(drop_rate=0.5, drop_path_rate=0.5)
    model.train()
    model.backbone.eval()
    model.stages["2"].backbone.bn1.momentum = 0.3
    modes = {name: module.training for name, module in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    recalibrate(model, images())

    assert torch.equal(torch.get_rng_state(), state)  # no dropout was drawn
    assert {name: module.training for name, module in model.named_modules()} == modes
    norms = batch_norms(model)
    assert all(norm.track_running_stats and not norm._forward_pre_hooks for norm in norms)
    assert model.stages["2"].backbone.bn1.momentum == 0.3
    for key, tensor in model.state_dict().items():
        kept = key.startswith("backbone.") or key.rpartition(".")[2] in ("weight", "bias", "gamma")
        assert torch.equal(tensor, before[key]) == kept, key


@torch.no_grad()
def test_after_a_fault_the_network_is_as_it_was():
    model = network()
    model.train()
    before = copy.deepcopy(model.state_dict())

    def broken():
        yield images()[0]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        recalibrate(model, broken())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(norm.track_running_stats and not norm._forward_pre_hooks for norm in batch_norms(model))


@torch.no_grad()
def test_forms_of_a_batch():
    plain = images()
    labels = torch.zeros(1)
    results = []
    for form in (
        plain,
        ((x, labels) for x in plain),
        [[x, labels] for x in plain],
        [Batch(labels, x, labels) for x in plain],
        [plain[0][:0], *plain],
    ):
        model = network()
        recalibrate(model, form)
        results.append(model.integration.norm.running_var)
    assert all(torch.equal(result, results[0]) for result in results)


@torch.no_grad()
def test_images_go_to_the_networks_type():
    model = network().bfloat16()
    recalibrate(model, [x.float() for x in images()])
    assert model.integration.norm.running_var.dtype == torch.bfloat16
    exact = network()
    recalibrate(exact, images())
    own, expected = (m.stages["3"].backbone.bn1.running_var.double() for m in (model, exact))
    torch.testing.assert_close(own, expected, rtol=0.05, atol=1e-3)


@torch.no_grad()
def test_statistics_that_stage_1_uses_too_stay():
    model = network(unshared_norms="none")
    before = copy.deepcopy(model.backbone.state_dict())
    assert recalibrate(model, images()) == 1  # the integration layer's
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.backbone.state_dict().items())


@torch.no_grad()
def test_a_backbone_without_batch_norms_has_the_integrations():
    model = network("wsms_test_convnext")
    assert recalibrate(model, images()) == 1


@torch.no_grad()
def test_the_integration_layers_of_all_levels_with_features_only():
    model = timm.create_model("wsms_test_resnet", features_only=True).double()
    reference = copy.deepcopy(model).eval()
    layers = {**model.model.feature_pyramid, "last": model.model.integration}
    assert recalibrate(model, images()) == len(batch_norms(model.model.stages)) + len(layers) and len(layers) > 2

    network, seen = reference.model, {name: [] for name in layers}
    for part in (network.stages, network.feature_pyramid, network.integration):
        part.train()
    for name, layer in {**network.feature_pyramid, "last": network.integration}.items():
        layer.norm.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
    for x in images():
        reference(x)
    for name, layer in layers.items():
        assert_has(layer.norm, seen[name])


@torch.no_grad()
def test_logits_in_eval_mode_come_closer_to_those_of_training():
    model = network("wsms_resnet20_cifar", residual=True)
    torch.nn.init.ones_(model.integration.gamma)
    batch = images((16,), side=32)

    def distance() -> float:
        reference = copy.deepcopy(model).eval()
        for part in (reference.stages, reference.integration):
            part.train()
        return (model.eval()(batch[0]) - reference(batch[0])).norm().item()

    before = distance()
    recalibrate(model, batch)
    assert distance() < 0.05 * before  # one batch: all but what the unbiased variance differs by


def test_mistakes():
    model = network()
    before = copy.deepcopy(model.state_dict())
    for nothing in ([], [torch.zeros(0, 3, 32, 32)]):
        with pytest.raises(timm_wsms.UserError, match="there are no images"):
            recalibrate(model, nothing)
    broken = images()[0].clone()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(timm_wsms.UserError, match="not finite reached a norm, so nothing was replaced"):
        recalibrate(model, [images()[0], broken])
    with pytest.raises(timm_wsms.UserError, match=r"float images .* not torch.uint8 \(2, 3, 32, 32\)"):
        recalibrate(model, [torch.zeros(2, 3, 32, 32, dtype=torch.uint8)])
    with pytest.raises(timm_wsms.UserError, match="not str"):
        recalibrate(model, ["cat.jpg"])
    with pytest.raises(timm_wsms.UserError, match="too small to take a variance"):
        recalibrate(model, images((1,), side=32))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(timm_wsms.UserError, match="takes a multi-stage network, not ResNet"):
        recalibrate(timm.create_model("test_resnet"), images())
    with pytest.raises(timm_wsms.UserError, match="nothing to recalibrate"):
        recalibrate(network("wsms_test_convnext", residual=False, integration="none"), images())
    with pytest.raises(timm_wsms.UserError, match="nothing to recalibrate"):
        recalibrate(network(stages=1), images())
