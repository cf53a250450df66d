"""The state-dict promise: every tensor once, under timm's names; it loads strictly."""

import pytest
import timm
import torch
from torch import nn

from tests.helpers.networks import (
    EXACT,
    SHARED,
    build,
    check_same,
    check_values_are_shared,
    each_form,
    logits,
    sharing,
    tensors,
)
from timm_wsms import UserError


@each_form
def test_every_tensor_stands_in_it_once(form):
    model = build(form)
    state = model.state_dict()
    every = tensors(model)
    assert {tensor.data_ptr() for tensor in state.values()} == {tensor.data_ptr() for tensor in every.values()}
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)
    assert len(state) == len({id(tensor) for tensor in every.values()})
    for key, tensor in state.items():
        assert tensor.data_ptr() == every[key].data_ptr()


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"])
def test_keys_under_backbone_are_timms(name):
    model = timm.create_model(f"wsms_{name}")
    state = model.state_dict()
    own = {key.removeprefix("backbone."): value.shape for key, value in state.items() if key.startswith("backbone.")}
    assert own == {key: value.shape for key, value in timm.create_model(name).state_dict().items()}
    rest = {key for key in state if not key.startswith("backbone.")}
    norms = {f"stages.{key}" for key, _ in model.stages.named_parameters(remove_duplicate=False)}
    assert {key for key in rest if not key.startswith("stages.")} == {
        "integration.conv.weight",
        "integration.gamma",
        *(f"integration.norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        "integration.norm.num_batches_tracked",
    }
    convolutions = {key for key in rest if key.startswith("stages.") and state[key].ndim > 1}
    assert not convolutions and norms


def test_keys_under_backbone_with_a_head_of_another_width_are_timms_but_for_the_head():
    state = build("own head").state_dict()
    own = {key.removeprefix("backbone.") for key in state if key.startswith("backbone.")}
    assert own == {key for key in timm.create_model("test_resnet").state_dict() if not key.startswith("fc.")}
    assert {key for key in state if not key.startswith(("backbone.", "stages."))} == {"head.fc.weight", "head.fc.bias"}


@each_form
def test_strict_load(form):
    source, target = build(form), build(form, seed=1)
    expected = logits(source)
    assert (logits(target) - expected).abs().max() > 1e-3
    before = sharing(target)
    assert str(target.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
    assert sharing(target) == before
    torch.testing.assert_close(logits(target), expected, **EXACT)
    check_same(target.state_dict(), source.state_dict())


def test_strict_load_inside_another_module():
    source, target = nn.Sequential(build()), nn.Sequential(build(seed=1))
    assert all(key.startswith("0.") for key in source.state_dict())
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(logits(target), logits(source), **EXACT)


@pytest.mark.parametrize("key", ["backbone.conv1.0.weight", "stages.2.backbone.bn1.weight", "integration.gamma"])
def test_strict_load_notices_what_is_missing(key):
    model = build()
    state = model.state_dict()
    del state[key]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{key}"'):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"stages\.4\.x"'):
        model.load_state_dict({**model.state_dict(), "stages.4.x": torch.zeros(1)})


@each_form
def test_load_by_assignment(form):
    source, target = build(form), build(form, seed=1)
    before = sharing(target)
    target.load_state_dict(source.state_dict(), assign=True)
    assert sharing(target) == before
    torch.testing.assert_close(logits(target), logits(source), **EXACT)
    if form in SHARED:
        check_values_are_shared(target)


@pytest.mark.parametrize("form, other", [("batch", "ms"), ("none", "batch")])
def test_weights_of_a_network_that_shares_less_are_refused(form, other):
    """Not the first stage's weights alone, silently."""
    state = build(other, seed=1).state_dict()
    with pytest.raises(
        UserError, match=r"these weights have another stages\.2\.backbone\..* which this network shares"
    ):
        build(form).load_state_dict(state)
    model, source = build(form), build(form, seed=1)
    shared = {key: tensor for key, tensor in tensors(source).items() if key in state}
    model.load_state_dict({**source.state_dict(), **shared})  # the same values twice are fine
    torch.testing.assert_close(logits(model), logits(source), **EXACT)
