"""The integration layer's three forms, with and without the residual, against formulas written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from timm_wsms.network.integration import Integration

WIDTHS = (5, 3, 2)
NEW_CHANNELS = {0: 10, 1: 4, 3: 4}


def layer(kernel_size, out_channels, **kwargs):
    """With values that no default would hide."""
    torch.manual_seed(0)
    integration = Integration(WIDTHS, out_channels, kernel_size, **kwargs).double()
    with torch.no_grad():
        for tensor in [*integration.norm.parameters(), *integration.norm.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, dtype=torch.float64) + 0.5)
    return integration


def maps():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, width, 4, 6, generator=generator, dtype=torch.float64) for width in WIDTHS]


def convolution(x, weight):
    """Stride 1, zeros around the map so that it keeps its size; no bias."""
    size = weight.shape[-1]
    patches = F.unfold(x, size, padding=size // 2)  # (B, C × size × size, positions)
    return torch.einsum("ok,bkp->bop", weight.flatten(1), patches).unflatten(2, x.shape[-2:])


def by_hand(integration, f, training):
    x = torch.cat(f, 1)
    if isinstance(integration.conv, nn.Conv2d):
        x = convolution(x, integration.conv.weight)
        norm = integration.norm
        mean, var = norm.running_mean, norm.running_var
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = (x * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
    return x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernel_size", [0, 1, 3])
def test_concatenation_convolution_norm_relu(kernel_size, training):
    integration = layer(kernel_size, NEW_CHANNELS[kernel_size])
    expected = by_hand(integration, maps(), training)
    found = integration.train(training)(maps())
    assert found.shape == (2, NEW_CHANNELS[kernel_size], 4, 6)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    if kernel_size:
        assert (found == 0).any() and (found > 0).any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_residual_weights_the_map_that_is_to_be_added_to_the_first(kernel_size, training):
    integration = layer(kernel_size, WIDTHS[0], residual=True)
    assert (integration.gamma == 1).all()
    with torch.no_grad():
        integration.gamma.copy_(torch.arange(5.0) - 2)  # one weight a channel, one of them zero
    integrated = by_hand(integration, maps(), training)
    expected = torch.stack([(channel - 2) * integrated[:, channel] for channel in range(5)], 1)
    torch.testing.assert_close(integration.train(training)(maps()), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_gamma_zero_gives_zero_bit_for_bit_and_can_leave_it(training):
    integration = layer(1, WIDTHS[0], residual=True, gamma=0.0).train(training)
    found = integration(maps())
    assert torch.equal(maps()[0] + found, maps()[0])
    found.sum().backward()
    assert integration.gamma.grad.abs().min() > 0  # γ can leave zero …
    assert integration.conv.weight.grad.abs().max() == 0  # … and until it has, nothing behind it learns


def test_what_it_holds():
    assert [key for key, _ in layer(1, 4).named_parameters()] == ["conv.weight", "norm.weight", "norm.bias"]
    assert "gamma" in dict(layer(3, 5, residual=True).named_parameters())
    assert [*layer(0, 10).parameters()] == [] and [*layer(0, 10).buffers()] == []
    assert layer(1, 4).conv.weight.shape == (4, 10, 1, 1)
    assert layer(3, 4).conv.weight.shape == (4, 10, 3, 3)
    assert layer(1, 5).gamma is None


def test_he_initialization():
    torch.manual_seed(0)
    for kernel_size in (1, 3):
        weight = Integration((64, 32, 16), 128, kernel_size).conv.weight
        assert weight.std().item() == pytest.approx((2 / (128 * kernel_size**2)) ** 0.5, rel=0.05)
