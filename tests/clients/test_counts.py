"""Counts of parameters and of multiplications, against PyTorch's own operator counter and the state dict's numbers."""

import functools

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.clients import build, client
from tests.helpers.networks import images

X = images(64, number=1)
TWICE = ("counts the parameters that stages share once per stage", AssertionError)


@functools.cache
def multiplications(form):
    """Of convolutions and linear layers."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build(form)(X)
    return counter.get_total_flops() // 2


def parameters(form):
    return sum(one.numel() for one in build(form).parameters())


@client("fvcore", "`FlopCountAnalysis` of convolutions and linear layers; `parameter_count`")
def test_fvcore(form):
    from fvcore.nn import FlopCountAnalysis, parameter_count

    by_operator = FlopCountAnalysis(build(form), X).unsupported_ops_warnings(False).by_operator()
    assert by_operator["conv"] + by_operator["linear"] == multiplications(form)
    assert parameter_count(build(form))[""] == parameters(form)


LATER = ("does not know the subclass of `Conv2d` that is the integration's convolution", AssertionError)


@client("thop", "`profile`: multiplications of convolutions and linear layers", concat=LATER)
def test_thop(form):
    import thop

    others = (torch.nn.BatchNorm2d, torch.nn.AvgPool2d, torch.nn.AdaptiveAvgPool2d, torch.nn.ReLU)
    found, _ = thop.profile(build(form), (X,), {kind: lambda *_: None for kind in others}, verbose=False)
    assert found == multiplications(form)


@client("thop", "`profile`: parameters", concat=TWICE, mean=TWICE)
def test_thop_parameters(form):
    import thop

    assert thop.profile(build(form), (X,), verbose=False)[1] == parameters(form)


@client("ptflops", "`get_model_complexity_info`: parameters; multiplications within 5 % (it adds norms and additions)")
def test_ptflops(form):
    import ptflops

    found, count = ptflops.get_model_complexity_info(
        build(form), (3, 64, 64), as_strings=False, print_per_layer_stat=False, backend="aten"
    )
    assert count == parameters(form) and 1 <= found / multiplications(form) < 1.05


@client("calflops", "`calculate_flops`: parameters; multiplications within 5 %")
def test_calflops(form):
    from calflops import calculate_flops

    _, found, count = calculate_flops(
        build(form), (1, 3, 64, 64), print_results=False, print_detailed=False, output_as_string=False
    )
    assert count == parameters(form) and 1 <= found / multiplications(form) < 1.05


@client("deepspeed", "`get_model_profile`: parameters; multiplications within 5 %")
def test_deepspeed(form):
    from deepspeed.profiling.flops_profiler import get_model_profile

    _, found, count = get_model_profile(build(form), (1, 3, 64, 64), print_profile=False, as_string=False)
    assert count == parameters(form) and 1 <= found / multiplications(form) < 1.05


@client("torchinfo", "`summary`: parameters", concat=TWICE, mean=TWICE)
def test_torchinfo_parameters(form):
    import torchinfo

    assert torchinfo.summary(build(form), input_data=X, verbose=0).total_params == parameters(form)


@client("torchinfo", "`summary`: multiplications of convolutions and linear layers within 1 % (it adds norms)")
def test_torchinfo_multiplications(form):
    import torchinfo

    found = torchinfo.summary(build(form), input_data=X, verbose=0).total_mult_adds
    assert 1 <= found / multiplications(form) < 1.01
