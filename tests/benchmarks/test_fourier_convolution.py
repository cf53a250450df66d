"""Convolutions by Fourier coefficients, against PyTorch's own."""

import runpy
import sys

import pytest
import torch
from torch import nn

from benchmarks.common.fourier_convolution import FourierConvolution, fourier_convolutions
from benchmarks.speed import fourier_cost

pytestmark = pytest.mark.slow  # a benchmark


@pytest.mark.parametrize(
    ("batch", "channels", "kernel", "size"),
    [(3, (16, 5), 5, (9, 12)), (10, (17, 6), 7, (4, 8)), (2, (32, 8), 7, (1, 1)), (9, (16, 16), 7, (13, 13))],
)
def test_values_and_gradients_are_those_of_conv2d(batch, channels, kernel, size):
    torch.manual_seed(0)
    layer = nn.Conv2d(*channels, kernel, padding=kernel // 2).double()
    x = torch.randn(batch, channels[0], *size, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    above = torch.randn_like(y)
    expected = [y, *torch.autograd.grad(y, (x, *layer.parameters()), above)]

    layer = layer.float()
    x = x.detach().float().requires_grad_()
    with fourier_convolutions():
        y = layer(x)
        assert "Fourier" in str(y.grad_fn.next_functions)
    found = [y, *torch.autograd.grad(y, (x, *layer.parameters()), above.float())]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-5 * other.detach().abs().max().item())
    assert "Fourier" not in str(layer(x).grad_fn.next_functions)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 4, 7, padding=2),
        nn.Conv2d(16, 4, 7, padding=3, stride=2),
        nn.Conv2d(16, 4, 7, padding=6, dilation=2),
        nn.Conv2d(16, 16, 7, padding=3, groups=16),
        nn.Conv2d(16, 4, 7, padding=3, padding_mode="reflect"),
        nn.Conv2d(16, 4, (7, 5), padding=(3, 2)),
        nn.Conv2d(16, 4, 6, padding=3),
    ],
    ids=["padding", "stride", "dilation", "groups", "border", "oblong", "even"],
)
def test_other_layers_stay_as_they_are(layer, monkeypatch):
    monkeypatch.setattr(FourierConvolution, "apply", None)
    x = torch.randn(2, 16, 12, 12)
    with fourier_convolutions():
        torch.testing.assert_close(layer(x), layer(x))
        with torch.autocast("cpu", torch.bfloat16):
            nn.Conv2d(16, 4, 7, padding=3)(x)


def test_a_script_runs_with_them(tmp_path, monkeypatch, capsys):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "y = torch.nn.Conv2d(16, 4, 7, padding=3)(torch.ones(1, 16, 8, 8))\n"
        "print(y.grad_fn.next_functions[0][0].name(), sys.argv[1:])\n"
    )
    module = fourier_convolutions.__module__
    monkeypatch.delitem(sys.modules, module)  # as `python -m` does, it runs what is not imported
    monkeypatch.setattr(sys, "argv", [module, str(script), "--x", "1"])
    runpy.run_module(module, run_name="__main__")
    assert capsys.readouterr().out.strip() == "FourierConvolutionBackward ['--x', '1']"
    monkeypatch.setattr(sys, "argv", [module])
    with pytest.raises(SystemExit, match="give the script to run"):
        runpy.run_module(module, run_name="__main__")


def test_a_network_learns_the_same():
    found = fourier_cost.measure("mnist_cnn", {}, batch=8, side=28, rounds=1)
    assert 0 < found["apart"] < 1e-3
    assert found["training"]["ratio"] > 0 and found["inference"]["ratio"] > 0
