"""Heat maps a stage: against sums written out by hand and against finite differences."""

import copy

import pytest
import timm
import torch

import timm_wsms  # noqa: F401  registers the names
from tests.helpers import networks
from timm_wsms.errors import UserError
from timm_wsms.evaluation.stages.cam import several_stages, spread, stage_heat_maps

torch.set_num_threads(1)


def build(name, **kwargs):
    """A network whose norms are not those of a fresh one, in eval mode."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


@pytest.fixture
def images():
    return networks.images(32)


def test_plain_network_gives_the_class_activation_map(images):
    model = build("resnet20_cifar")
    got = stage_heat_maps(model, images, [3, 1])
    features = model.forward_features(images)
    weight = model.get_classifier().weight[[3, 1]]  # (2, channels)
    expected = torch.einsum("bc,bchw->bhw", weight, features) / features[0, 0].numel()
    torch.testing.assert_close(got, expected[:, None].detach())


def test_stages_by_hand(images):
    """Convolution, norm and ReLU of the integration layer written out, for the paper's form."""
    model = build("wsms_resnet20_cifar", residual=False)
    got = stage_heat_maps(model, images, [3, 1])
    with torch.no_grad():
        _, maps = model.stage_maps(images)
        norm, fc = model.integration.norm, model.head.fc
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # (c,)
        shift = norm.bias - scale * norm.running_mean
        weights = (scale[:, None] * model.integration.conv.weight.flatten(1)).split([m.shape[1] for m in maps], dim=1)
        parts = [torch.einsum("oc,bchw->bohw", w, m) for w, m in zip(weights, maps, strict=True)]
        active = sum(parts) + shift[:, None, None] > 0  # (b, c, h, w)
        read = fc.weight[[3, 1]][:, :, None, None] * active / maps[0][0, 0].numel()
        expected = torch.stack([(read * part).sum(1) for part in parts], 1)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        biases = (read * shift[:, None, None]).sum((1, 2, 3)) + fc.bias[[3, 1]]
        logits = model(images)[[0, 1], [3, 1]]
    torch.testing.assert_close(got.sum((1, 2, 3)) + biases, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["wsms_test_resnet", "wsms_test_vit", "wsms_efficientvim_m1"])
def test_residual_form_by_finite_differences(name):
    """The derivative of the logit when one stage's features are scaled by 1 + t is the sum of its heat map."""
    model = build(name).double()
    with torch.no_grad():
        model.integration.gamma.fill_(0.7)
        image = torch.randn(1, *model.default_cfg["input_size"], dtype=torch.float64)
        got = stage_heat_maps(model, image, [2])
        features, maps = model.stage_maps(image)

        def logit(scales):
            own = features[-1] if isinstance(features, (list, tuple)) else features
            tokens = own.shape[1] - maps[0][0, 0].numel() if own.ndim == 3 and model.layout != "NCL" else 0
            scaled = torch.cat([own[:, :tokens], scales[0] * own[:, tokens:]], 1)
            inputs = [*features[:-1], scaled] if isinstance(features, (list, tuple)) else scaled
            x = model.integration([scale * one for scale, one in zip(scales, maps, strict=True)])
            return model.forward_head(model.merged(inputs, x))[0, 2]

        t = 1e-5
        for stage in range(3):
            up, down = ([1 + sign * t * (s == stage) for s in range(3)] for sign in (1, -1))
            expected = (logit(up) - logit(down)) / (2 * t)
            assert got[0, stage].sum().item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-7)


def test_predicted_class_by_default_and_nothing_left_behind(images):
    model = build("wsms_test_resnet")
    state = copy.deepcopy(model.state_dict())
    predicted = model(images).argmax(1)
    model.train()
    got = stage_heat_maps(model, images)
    assert got.equal(stage_heat_maps(model, images, predicted)) and not got.requires_grad
    assert not got.equal(stage_heat_maps(model, images, (predicted + 1) % 5))
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "stages", "shape"),
    [("swin_tiny_patch4_window7_224", 1, (7, 7)), ("wsms_pit_ti_224", 3, (7, 7)), ("wsms_coat_tiny", 3, (7, 7))],
)
def test_shapes_of_other_layouts(name, stages, shape):
    assert stage_heat_maps(build(name), torch.randn(1, 3, 224, 224)).shape == (1, stages, *shape)


def test_shapes_of_other_layouts_where_logits_are_averaged():
    model = build("wsms_swin_tiny_patch4_window7_224", fusion="mean", pyramid=[1, 0.5])
    assert stage_heat_maps(model, torch.randn(1, 3, 224, 224)).shape == (1, 2, 7, 7)


def test_one_stage_is_its_backbone(images):
    model = build("wsms_test_resnet", stages=1)
    assert stage_heat_maps(model, images).equal(stage_heat_maps(model.backbone, images))


@pytest.mark.parametrize("pyramid", [[1, 0.5], [1, 2]])
def test_where_logits_are_averaged_each_stage_gives_its_own_class_activation_map(images, pyramid):
    model = build("wsms_resnet20_cifar", fusion="mean", pyramid=pyramid)
    got = stage_heat_maps(model, images, [3, 1])
    weight, bias = model.get_classifier().weight[[3, 1]], model.get_classifier().bias[[3, 1]]
    with torch.no_grad():
        own, other = (torch.einsum("bc,bchw->bhw", weight, one) / 2 for one in model.stage_features(images))
        own, other = (one / one[0].numel() for one in (own, other))
        logits = model(images)[[0, 1], [3, 1]]
    if pyramid == [1, 0.5]:  # each of its places covers four
        other = other.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4
    else:
        other = other.unflatten(2, (-1, 2)).sum(3).unflatten(1, (-1, 2)).sum(2)
    torch.testing.assert_close(got, torch.stack([own, other], 1).detach())
    torch.testing.assert_close(got.sum((1, 2, 3)) + bias.detach(), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("old, new", [((6, 4), (4, 6)), ((3, 5), (7, 2)), ((4, 4), (4, 4))])
def test_values_are_spread_by_area(old, new):
    x = torch.randn(2, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fine = x.repeat_interleave(new[0], 1).repeat_interleave(new[1], 2) / (new[0] * new[1])  # a grid both fit into
    expected = fine.reshape(2, new[0], old[0], new[1], old[1]).sum((2, 4))
    torch.testing.assert_close(spread(x, new), expected)


def test_models_that_cannot_be_looked_into():
    for model in (build("resnet20_cifar"), build("wsms_test_resnet", stages=1)):
        with pytest.raises(UserError, match="only a network of several stages"):
            several_stages(model)
    for model in (build("test_vit"), build("wsms_test_vit", fusion="mean", pyramid=[1, 0.5])):
        with pytest.raises(UserError, match="returns tokens"):
            stage_heat_maps(model, torch.zeros(1, 3, 160, 160))
