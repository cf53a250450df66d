"""What is done to a network and its optimizer before training, by value and by structure."""

import re

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn

import timm_wsms  # noqa: F401  registers the names
from timm_wsms.errors import UserError
from timm_wsms.network.weight_sharing import keeps_statistics
from timm_wsms.training.builders import adapt, build, build_accelerator, build_optimizer, scale_head, synchronize_norms
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import OptimizerSettings, ScheduleSettings, Settings

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def network(name: str = "wsms_test_resnet") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5)


# --- norms over all processes


@pytest.mark.parametrize("unshared_norms", ["batch", "statistics", "none"])
def test_synchronized_norms_keep_their_tensors_their_sharing_and_their_activations(unshared_norms):
    torch.manual_seed(0)
    model = timm.create_model("wsms_test_efficientnet", num_classes=5, unshared_norms=unshared_norms)
    images = torch.randn(2, 3, 64, 64)
    logits = model.eval()(images)
    before = {
        kind: {name: id(tensor) for name, tensor in getattr(model, f"named_{kind}")(remove_duplicate=False)}
        for kind in ("parameters", "buffers")
    }
    norms = {name: module for name, module in model.named_modules() if keeps_statistics(module)}
    keys = list(model.state_dict())
    converted = synchronize_norms(model, "wsms_test_efficientnet", GPU)
    after = {
        kind: {name: id(tensor) for name, tensor in getattr(converted, f"named_{kind}")(remove_duplicate=False)}
        for kind in ("parameters", "buffers")
    }
    assert after == before
    assert list(converted.state_dict()) == keys
    for name, module in converted.named_modules():
        assert isinstance(module, nn.SyncBatchNorm) == (name in norms)
        if isinstance(norms.get(name), BatchNormAct2d):
            assert isinstance(module, SyncBatchNormAct)
            assert module.act is norms[name].act
    assert isinstance(converted.integration.norm, nn.SyncBatchNorm) and not isinstance(
        converted.integration.act, nn.Identity
    )
    # Outside of a process group, and in eval mode, they compute what the others did.
    torch.testing.assert_close(converted(images), logits, rtol=0, atol=0)
    # What is moved to a device is still shared.
    doubled = converted.double()
    assert len({id(tensor) for tensor in doubled.parameters()}) == len(set(before["parameters"].values()))


def test_synchronized_norms_are_refused_in_one_line_where_they_cannot_be():
    with pytest.raises(UserError, match="sync_bn needs GPUs"):
        adapt(network(), Settings("wsms_test_resnet", sync_bn=True), CPU)
    with pytest.raises(UserError, match="test_vit has no batch normalization; leave out sync_bn"):
        synchronize_norms(network("test_vit"), "test_vit", GPU)


# --- gradient checkpointing


def test_gradient_checkpointing_is_switched_on_or_refused():
    model = adapt(network(), Settings("wsms_test_resnet", grad_checkpointing=True), CPU)
    assert model.backbone.grad_checkpointing  # its gradients: test_checkpointing.py
    with pytest.raises(UserError, match="selecsls42 has no gradient checkpointing"):
        adapt(network("selecsls42"), Settings("selecsls42", grad_checkpointing=True), CPU)


# --- the loss of each stage


def test_a_loss_of_each_stage_needs_a_network_with_predictions_of_each():
    model = timm.create_model("wsms_test_resnet", num_classes=5, fusion="mean", stages=2)
    model = adapt(model, Settings("wsms_test_resnet", stage_loss=0.5), CPU).train()
    outputs = model(torch.randn(3, 3, 64, 64))
    assert outputs.logits.shape == (2, 3, 5) and outputs.features is None
    with_features = adapt(model, Settings("wsms_test_resnet", stage_consistency=0.5), CPU)
    assert with_features(torch.randn(3, 3, 64, 64)).features.shape == (2, 3, model.head_hidden_size)
    for name in ("wsms_test_resnet", "test_resnet"):
        with pytest.raises(UserError, match=f"{name} has no predictions per stage; .* --model_kwargs.fusion mean"):
            adapt(network(name), Settings(name, stage_loss=0.5), CPU)


def test_a_loss_of_each_stage_needs_two_stages_and_features_without_dropout():
    one = timm.create_model("wsms_test_resnet", num_classes=5, fusion="mean", pyramid=[1])
    for setting in ("stage_loss", "stage_distill", "stage_consistency"):
        with pytest.raises(UserError, match=r"has a single stage here; .*pyramid \[1,0.5\]"):
            adapt(one, Settings("wsms_test_resnet", **{setting: 1.0}), CPU)
    dropping = timm.create_model("wsmean_test_resnet", num_classes=5, drop_rate=0.5)
    with pytest.raises(UserError, match=r"leave out model_kwargs\.drop_rate"):
        adapt(dropping, Settings("wsmean_test_resnet", stage_consistency=1.0), CPU)
    adapt(dropping, Settings("wsmean_test_resnet", stage_loss=1.0), CPU)


# --- layer decay


def layer(name: str) -> int:
    """The layer of a parameter of wsms_test_resnet: 0 the stem, 1 to 4 the blocks, 5 integration and classifier."""
    name = re.sub(r"^stages\.\d\.", "", name)  # a stage's own norms stand where the backbone's do
    if not name.startswith("backbone.") or name.startswith("backbone.fc"):
        return 5
    found = re.match(r"backbone\.layer(\d)", name)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "onecycle"])
def test_layer_decay_scales_the_learning_rate_of_every_parameter(schedule):
    def built(layer_decay: float | None) -> tuple[nn.Module, torch.optim.Optimizer, Schedule]:
        chosen = ScheduleSettings(schedule, milestones=[2], warmup_epochs=1)
        optimizer = OptimizerSettings("momentum", layer_decay=layer_decay)
        settings = Settings("wsms_test_resnet", epochs=4, lr=0.1, schedule=chosen, optimizer=optimizer)
        model = network()
        optimizer = build_optimizer(model, settings)
        return model, optimizer, Schedule(optimizer, settings, 5)

    model, optimizer, decayed = built(0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plain = built(None)[2]
    for update in range(20):
        rate = plain.set(update)
        assert decayed.set(update) == pytest.approx(rate)  # the last layer's
        seen = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                seen[names[id(parameter)]] = group["lr"]
                assert group["weight_decay"] == 1e-4  # of all parameters
        assert seen.keys() == set(names.values())
        for name, got in seen.items():
            assert got == pytest.approx(rate * 0.5 ** (5 - layer(name))), name


# --- what accelerate is configured for


@pytest.mark.parametrize(("variable", "name"), [("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Mega")])
def test_networks_in_pieces_are_refused_with_the_reason(monkeypatch, variable, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(UserError, match=f"configured for {name}.* in pieces; .*plain data parallelism"):
        build_accelerator(Settings("a"))


@pytest.mark.parametrize(
    ("precision", "capability", "warned"), [("bf16", "AVX2", True), ("bf16", "AVX512", False), ("no", "AVX2", False)]
)
def test_bf16_that_the_cpu_has_to_emulate_is_said(monkeypatch, capsys, precision, capability, warned):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    build_accelerator(Settings("a", precision=precision))
    AcceleratorState._reset_state(reset_partial_state=True)  # the next test may ask for another precision
    out = capsys.readouterr().out
    assert ("warning: this CPU has no instructions for bf16" in out and "add --precision no" in out) == warned


# --- what a model folder may not say


def test_what_could_not_be_loaded_is_not_trained():
    """A folder's config gives none of a backbone's arguments that are not known to be harmless."""
    with pytest.raises(UserError, match=r"its model folder could not be read again: .*unknown argument 'stem_width'"):
        build("wsms_test_resnet", {"stem_width": 16}, 5)
    assert build("wsms_test_resnet", {"drop_rate": 0.1}, 5).num_classes == 5


# --- the classifier's initial scale


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_resnet", {}),
        ("wsms_test_resnet", {}),
        ("wsms_test_resnet", {"fusion": "mean"}),
        ("wsms_test_resnet", {"fusion": "mean", "share_weights": False}),
    ],
)
def test_every_stages_classifier_is_scaled_once_and_nothing_else(name, kwargs):
    model = timm.create_model(name, num_classes=5, **kwargs)
    torch.nn.init.normal_(model.get_classifier().bias)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scale_head(model, None)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    scale_head(model, 0.25)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] * (0.25 if re.search(r"(^|\.)fc\.", key) else 1)), key
    images = torch.randn(2, 3, 64, 64)
    small = model.eval()(images)
    model.load_state_dict(before)
    torch.testing.assert_close(small, model(images) / 4)
