"""WsmsNet against a naive network: the stages of a ResNet-18 written out by hand, plain copies with tied tensors."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import nn

import timm_wsms  # registers the names
from tests.helpers.networks import images

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
LEVELS = {1: 4, 2: 3, 3: 2}  # stage: how many of layer1 … layer4 it runs (paper, Fig. 2)


def randomize_all(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor, γ and the running statistics too, values that no default would hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                positive = tensor.ndim == 1 and not name.endswith(("bias", "running_mean"))
                tensor.copy_(1 + 0.1 * noise if positive else noise * 0.05)
    return model


def network(**kwargs) -> timm_wsms.WsmsNet:
    return randomize_all(timm.create_model("wsms_resnet18", num_classes=5, **kwargs).double())


def image(seed: int = 1) -> torch.Tensor:
    return images(seed=seed, dtype=torch.float64)


class ByHand(nn.Module):
    """Three plain ResNet-18s, of which the second and third are run only so far as the paper says.

    Args:
        model: Where the values come from.
        tied: Put the first network's convolutions into the others; otherwise each keeps a copy.
    """

    def __init__(self, model: timm_wsms.WsmsNet, tied: bool):
        super().__init__()
        values = model.state_dict()
        plain = timm.create_model("resnet18", num_classes=5).double()
        plain.load_state_dict({k.removeprefix("backbone."): v for k, v in values.items() if k.startswith("backbone.")})
        self.first, self.second, self.third = plain, copy.deepcopy(plain), copy.deepcopy(plain)
        for number, net in ((2, self.second), (3, self.third)):
            prefix = f"stages.{number}.backbone."
            norms = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
            assert norms and all("bn" in key or "downsample.1" in key for key in norms)  # nothing else is its own
            net.load_state_dict(norms, strict=False)
            for name, module in net.named_modules():
                if tied and isinstance(module, nn.Conv2d):
                    module.weight = self.first.get_submodule(name).weight
        self.conv = nn.Parameter(values["integration.conv.weight"].clone())
        self.norm = nn.BatchNorm2d(512).double()
        self.norm.load_state_dict({k: values[f"integration.norm.{k}"] for k in self.norm.state_dict()})
        self.gamma = nn.Parameter(values["integration.gamma"].clone()) if "integration.gamma" in values else None

    @staticmethod
    def run(net: nn.Module, x: torch.Tensor, levels: int) -> torch.Tensor:
        x = net.maxpool(F.relu(net.bn1(net.conv1(x))))
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4)[:levels]:
            x = layer(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        quarter = (half[..., ::2, ::2] + half[..., 1::2, ::2] + half[..., ::2, 1::2] + half[..., 1::2, 1::2]) / 4
        f1 = self.run(self.first, x, LEVELS[1])
        maps = (f1, self.run(self.second, half, LEVELS[2]), self.run(self.third, quarter, LEVELS[3]))
        integrated = torch.einsum("oc,bchw->bohw", self.conv[:, :, 0, 0], torch.cat(maps, 1))
        integrated = F.relu(self.norm(integrated))
        if self.gamma is not None:
            integrated = f1 + self.gamma.view(1, -1, 1, 1) * integrated
        return self.first.fc(integrated.mean((2, 3)))

    def parameter(self, key: str) -> nn.Parameter:
        """The parameter that stands under a key of WsmsNet's."""
        fixed = {
            "integration.conv.weight": self.conv,
            "integration.norm.weight": self.norm.weight,
            "integration.norm.bias": self.norm.bias,
            "integration.gamma": self.gamma,
        }
        if key in fixed:
            return fixed[key]
        for prefix, net in (
            ("backbone.", self.first),
            ("stages.2.backbone.", self.second),
            ("stages.3.backbone.", self.third),
        ):
            if key.startswith(prefix):
                return net.get_parameter(key.removeprefix(prefix))
        raise KeyError(key)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_logits_and_gradients_are_those_of_the_network_written_by_hand(residual, training):
    model = network(residual=residual).train(training)
    reference = ByHand(model, tied=True).train(training)
    target = torch.tensor([1, 3])

    logits, expected = model(image()), reference(image())
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    F.cross_entropy(logits, target).backward()
    F.cross_entropy(expected, target).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, key
        torch.testing.assert_close(parameter.grad, reference.parameter(key).grad, **TOLERANCE)
    if training:
        for number, net in ((1, reference.first), (2, reference.second), (3, reference.third)):
            own = model.backbone if number == 1 else model.stages[str(number)].backbone
            torch.testing.assert_close(own.bn1.running_mean, net.bn1.running_mean, **TOLERANCE)


def test_a_shared_weights_gradient_is_the_sum_of_the_stages_own():
    model = network()
    untied = ByHand(model, tied=False)
    model.train()(image()).square().sum().backward()
    untied.train()(image()).square().sum().backward()
    shared = 0
    for key, parameter in model.backbone.named_parameters():
        owners = [untied.first, untied.second, untied.third]
        own = [net.get_parameter(key).grad for net in owners if isinstance(_module(net, key), nn.Conv2d)]
        own = [gradient for gradient in own if gradient is not None]
        if len(own) > 1:
            shared += 1
            assert all(gradient.abs().max() > 1e-6 for gradient in own), key
            torch.testing.assert_close(parameter.grad, sum(own), **TOLERANCE)
    assert shared == 1 + 4 + 5 + 5  # the convolutions of the stem, layer1, layer2, layer3


def _module(net: nn.Module, parameter: str) -> nn.Module:
    return net.get_submodule(parameter.rpartition(".")[0])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_blanking_a_stages_image_changes_the_logits(stage, monkeypatch):
    model = network().eval()
    before = model(image())
    images = model.pyramid(image())
    images[stage - 1] = torch.zeros_like(images[stage - 1])
    monkeypatch.setattr(model, "pyramid", lambda _: images)
    assert (model(image()) - before).abs().max() > 1e-3


def test_exchanging_two_stages_is_noticed(monkeypatch):
    model = network().eval()
    reference = ByHand(model, tied=True).eval()
    first, second, third = model.pyramid(image())
    monkeypatch.setattr(model, "pyramid", lambda _: [first, third, second])
    assert (model(image()) - reference(image())).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(64, 64), (70, 90), (33, 47)])
def test_maps_are_resized_only_when_they_differ(size, monkeypatch):
    model = timm.create_model("wsms_resnet20_cifar").eval()
    resized = []
    interpolate = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, **kw: resized.append(kw["size"]) or interpolate(x, **kw))
    x = torch.randn(1, 3, *size)
    assert model.forward_features(x).shape[-2:] == model.backbone.forward_features(x).shape[-2:]
    divides = size[0] % 4 == 0 and size[1] % 4 == 0
    assert bool(resized) != divides


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_any_number_of_stages_up_to_the_levels(stages):
    model = timm.create_model("wsms_resnet18", stages=stages).eval()
    assert len(model.pyramid(image().float())) == stages
    logits = model(image().float())
    assert logits.shape == (2, 1000)
    plain = model.backbone(image().float())
    assert torch.equal(logits, plain) == (stages == 1)  # one stage is the backbone itself


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "resnet20_cifar"])
@pytest.mark.parametrize("coarse", [True, False])
def test_layers_are_grouped_as_the_backbones(name, coarse):
    def groups(model: nn.Module) -> dict[str, int]:
        return group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)

    own, expected = groups(timm.create_model(f"wsms_{name}")), groups(timm.create_model(name))
    heads = {key for key in expected if f"backbone.{key}" not in own}
    assert heads <= {"fc.weight", "fc.bias"}  # a head of another width takes its place
    for key, group in own.items():
        plain = key.partition("backbone.")[2]
        if plain:
            assert group == expected[plain], key
