"""Copies and conversions of a network, by values: what was shared stays shared."""

import copy

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

from tests.helpers.networks import (
    CLOSE,
    EXACT,
    FORMS,
    SHARED,
    build,
    check_same,
    check_values_are_shared,
    each_form,
    gradients,
    images,
    logits,
    randomize,
    sharing,
    tensors,
)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("form", ["batch", "none", "ms"])
def test_moving_average_of_three_steps(form, foreach):
    model = build(form)
    ema = ModelEmaV3(model, decay=0.9, foreach=foreach)
    average = {key: value.clone() for key, value in model.state_dict().items()}
    for step in range(3):
        randomize(model, seed=10 + step)
        model.train()(images(seed=step))  # moves running statistics and num_batches_tracked
        ema.update(model)
        for key, value in model.state_dict().items():
            average[key] = 0.9 * average[key] + 0.1 * value if value.is_floating_point() else value.clone()
    check_same(ema.module.state_dict(), average, rtol=1e-5, atol=1e-6)
    assert sharing(ema.module) == sharing(model)
    moved = (average["backbone.layer1.0.conv1.weight"] - model.state_dict()["backbone.layer1.0.conv1.weight"]).abs()
    assert moved.max() > 1e-3
    by_hand = build(form)
    by_hand.load_state_dict(average)
    torch.testing.assert_close(logits(ema.module), logits(by_hand), rtol=1e-4, atol=1e-4)


@each_form
def test_deepcopy_shares_inside_and_nothing_outside(form):
    model = build(form)
    copied = copy.deepcopy(model)
    assert sharing(copied) == sharing(model)
    expected = logits(model)
    check_same(copied.state_dict(), model.state_dict())
    torch.testing.assert_close(logits(copied), expected, **EXACT)
    with torch.no_grad():
        for tensor in tensors(model).values():
            tensor.zero_()
    torch.testing.assert_close(logits(copied), expected, **EXACT)
    if form in SHARED:
        check_values_are_shared(copied)


@each_form
def test_to_bfloat16(form):
    model = build(form)
    expected = {k: v.bfloat16() if v.is_floating_point() else v.clone() for k, v in model.state_dict().items()}
    before, exact = sharing(model), logits(model)
    model = model.to(torch.bfloat16)
    assert sharing(model) == before
    check_same(model.state_dict(), expected)
    found = logits(model, torch.bfloat16).float()
    assert (found - exact).norm() < 0.05 * exact.norm()
    gradients(model.train(), images(dtype=torch.bfloat16))  # a parameter that was left behind would raise
    if form in SHARED:
        check_values_are_shared(model)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_mambaout"])
def test_channels_last_gives_the_same_logits_and_gradients(name):
    torch.manual_seed(0)
    model = randomize(timm.create_model(f"wsms_{name}", num_classes=5)).double().eval()
    x = images(dtype=torch.float64)
    expected, expected_gradients = logits(model, torch.float64), gradients(model, x)
    before = sharing(model)
    model = model.to(memory_format=torch.channels_last)
    assert sharing(model) == before
    spatial = [tensor for tensor in tensors(model).values() if tensor.ndim == 4 and tensor.shape[2] > 1]
    assert spatial and all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in spatial)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, **CLOSE)
    check_same(gradients(model, x.to(memory_format=torch.channels_last)), expected_gradients, **CLOSE)


@each_form
def test_built_without_memory_then_filled(form):
    source = build(form)
    name, arguments = FORMS[form]
    with torch.device("meta"):
        empty = timm.create_model(f"wsms_{name}", num_classes=5, **arguments)
    assert all(tensor.is_meta for tensor in tensors(empty).values())
    before = sharing(empty)
    assert before == sharing(source)
    assigned = copy.deepcopy(empty)
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(source.state_dict())
    assigned.load_state_dict(source.state_dict(), assign=True)
    for model in (filled, assigned):
        assert sharing(model) == before
        torch.testing.assert_close(logits(model), logits(source), **EXACT)


def check_synchronized(model, converted, norm):
    """The same network with another class of batch normalization, module by module."""
    kept = sharing(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    model = converted(model)
    assert [name for name, module in model.named_modules() if isinstance(module, norm)] == expected
    assert not [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert sharing(model) == kept
    check_same(model.state_dict(), state)
    model.load_state_dict(state)
    return model


def test_synchronized_batch_normalization_keeps_what_is_shared():
    # torch's converter drops timm's activations, so only where the norms have none; timm's knows them
    model = build("batch", integration_channels=8, residual=False, integration="conv1x1")
    model.integration.norm = nn.BatchNorm2d(8)
    expected = logits(model)
    model = check_synchronized(model, nn.SyncBatchNorm.convert_sync_batchnorm, nn.SyncBatchNorm)
    torch.testing.assert_close(logits(model), expected, **EXACT)  # eval mode needs no other process
    check_values_are_shared(model)

    model = randomize(timm.create_model("wsms_test_efficientnet", num_classes=5))
    expected = logits(model)
    model = check_synchronized(model, timm.layers.convert_sync_batchnorm, nn.SyncBatchNorm)
    torch.testing.assert_close(logits(model), expected, **EXACT)
    check_values_are_shared(model)
