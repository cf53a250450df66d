"""Activation checkpointing: the same gradients, and running statistics updated once."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.helpers.networks import CLOSE, build, check_same, gradients, images, randomize
from timm_wsms.network.checkpointing_bn import update_statistics_once


def check_recomputation(plain, model, run):
    """The same gradients, and running statistics moved by one batch once."""
    x = images(dtype=torch.float64)
    expected = gradients(plain.train(), x)
    model.train()
    run(model, x).square().sum().backward()
    check_same({name: parameter.grad for name, parameter in model.named_parameters()}, expected, **CLOSE)
    check_same(model.state_dict(), plain.state_dict(), **CLOSE)
    counts = [value.item() for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counts and set(counts) == {1}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet20_cifar", "densenet100_k24_cifar"])
def test_gradient_checkpointing(name):
    arguments = {"depth": 10} if "densenet" in name else {}
    torch.manual_seed(0)
    plain = randomize(timm.create_model(f"wsms_{name}", num_classes=5, **arguments)).double()
    model = copy.deepcopy(plain)
    model.set_grad_checkpointing()
    convolutions = []
    last = [module for module in model.backbone.modules() if isinstance(module, nn.Conv2d) and module.groups == 1][-2]
    last.register_forward_hook(lambda *_: convolutions.append(1))
    check_recomputation(plain, model, lambda model, x: model(x))
    assert len(convolutions) == 2  # it did recompute
    model.set_grad_checkpointing(False)
    model.zero_grad()
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(gradients(model, images(dtype=torch.float64)),
                               gradients(plain, images(dtype=torch.float64)), **CLOSE)  # fmt: skip
    check_same(model.state_dict(), plain.state_dict(), **CLOSE)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("form", ["batch", "ms", "mean"])
def test_checkpointing_of_the_whole_model(form):
    plain = build(form).double()
    model = copy.deepcopy(plain)
    update_statistics_once(model)
    check_recomputation(plain, model, lambda model, x: checkpoint(model, x, use_reentrant=False))


def test_statistics_of_a_cumulative_average_are_updated_once_too():
    plain = build().double()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model = copy.deepcopy(plain)
    update_statistics_once(model)
    check_recomputation(plain, model, lambda model, x: checkpoint(model, x, use_reentrant=False))
    assert all(module.momentum is None for module in model.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.slow
def test_gradient_checkpointing_with_a_compiler():
    plain = build().double()
    model = copy.deepcopy(plain)
    model.set_grad_checkpointing()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    check_recomputation(plain, model, lambda _, x: compiled(x))
