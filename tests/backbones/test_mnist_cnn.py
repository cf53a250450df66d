"""The plain CNN of MNIST-scale: against its layers written out, its size, and as the backbone of a WSMS network."""

import pytest
import timm
import torch
import torch.nn.functional as F

import timm_wsms  # noqa: F401

torch.set_num_threads(1)


def trained_like(model):
    """Norms as after training: none of them the identity."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def by_hand(weights, x):
    """Logits from a state dict (Sosnovik et al. 2020, their network for images of 28×28 and 56×56)."""

    def norm(x, key):
        entries = [weights[f"{key}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        mean, var, weight, bias = (entry.reshape(1, -1, *[1] * (x.ndim - 2)) for entry in entries)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    for level in (1, 2, 3):
        kernel, bias = (weights[f"features.conv{level}.{name}"] for name in ("weight", "bias"))
        x = F.relu(F.conv2d(x, kernel, bias, padding=3))
        if level < 3:
            x = norm(F.max_pool2d(x, 2), f"features.norm{level}")
    half = -(-x.shape[-1] // 2)  # an odd map's middle row and column belong to both halves
    x = torch.stack([part.amax((2, 3)) for rows in (x[:, :, :half], x[:, :, -half:]) for part in
                     (rows[..., :half], rows[..., -half:])], -1)  # (B, C, 4)  # fmt: skip
    x = norm(x, "hidden.norm3").flatten(1) @ weights["hidden.fc.weight"].T
    return F.relu(norm(x, "hidden.norm4")) @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize("side", [28, 56])
def test_logits(side):
    model = trained_like(timm.create_model("mnist_cnn"))
    images = torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(images), by_hand(model.state_dict(), images), rtol=1e-4, atol=1e-4)


def test_parameters_are_the_published_network_s():
    assert sum(value.numel() for value in timm.create_model("mnist_cnn").parameters()) == 494_549


@pytest.mark.parametrize("name", ["mnist_cnn", "wsms_mnist_cnn", "ms_mnist_cnn"])
def test_classifier_and_pooling_can_be_replaced(name):
    images = torch.randn(2, 1, 28, 28)
    model = timm.create_model(name)
    hidden = {key: value for key, value in model.state_dict().items() if "hidden" in key}
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert hidden and all(model.state_dict()[key] is not None for key in hidden)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in hidden.items())
    model.reset_classifier(0)
    assert model(images).shape == (2, 256) == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(images).shape == (2, 95, 7, 7) == (2, model.num_features, 7, 7)
    model.reset_classifier(10, "avg")
    assert model(images).shape == (2, 10)
    with pytest.raises(ValueError, match="global_pool must be 'max', 'avg' or ''"):
        model.reset_classifier(10, "catavgmax")


def test_averaged_predictions_stay_below_half_a_million_parameters():
    model = timm.create_model("wsms_mnist_cnn", fusion="mean", pyramid=[2, 1, 0.5])
    assert sum(value.numel() for value in model.parameters()) == 494_549 + 2 * 2 * (32 + 63 + 95 + 256)


def test_every_parameter_gets_a_gradient():
    for fusion in ("concat", "mean"):
        model = timm.create_model("wsms_mnist_cnn", fusion=fusion)
        model(torch.randn(4, 1, 28, 28)).square().mean().backward()
        assert all(value.grad is not None for value in model.parameters())
