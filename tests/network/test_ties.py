"""What is done to a shared layer holds for every stage, or is refused by name; nothing ends the sharing silently."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from tests.helpers.networks import EXACT, build, each_form, images, logits, sharing, tensors
from timm_wsms import UserError

LAYER = "backbone.layer1.0.conv1"
PATHS = (LAYER, f"stages.2.{LAYER}", f"stages.3.{LAYER}")


def weights(model):
    """The weights with which each stage runs."""
    logits(model)
    return [model.get_submodule(path).weight.detach().clone() for path in PATHS]


def step(model):
    """A step of SGD that changes every parameter; what the layer's weight was before and is after."""
    before = weights(model)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    model(images()).square().mean().backward()
    assert all(
        parameter.grad is not None for parameter in model.parameters()
    )  # no weight of a stage's own is left over
    optimizer.step()
    after = weights(model)
    assert (after[0] - before[0]).abs().max() > 1e-6
    for stages in (before, after):
        assert all(torch.equal(weight, stages[0]) for weight in stages[1:])
    return before[0], after[0]


def by_hand(model, weight):
    """The logits of a plainly built network with this weight in the layer and all else equal."""
    plain = build()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(LAYER)}
    plain.load_state_dict(state | {f"{LAYER}.weight": weight})
    return logits(plain)


REPARAMETRIZED = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight_norm": weight_norm,
    "parametrizations.weight_norm": parametrizations.weight_norm,
    "spectral_norm": spectral_norm,
    "parametrizations.spectral_norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("how", REPARAMETRIZED)
def test_a_layer_of_the_backbone_is_reparametrized_for_all_stages(how):
    model = build()
    REPARAMETRIZED[how](model.get_submodule(LAYER))
    _, after = step(model)
    torch.testing.assert_close(logits(model), by_hand(model, after), **EXACT)
    assert not [key for key in model.state_dict() if key.startswith("stages.") and "conv1.weight" in key]
    again = build(seed=1)
    REPARAMETRIZED[how](again.get_submodule(LAYER))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


def test_a_pruned_layer_and_its_removal():
    model = build()
    dense = model.get_submodule(LAYER).weight.detach().clone()
    prune.l1_unstructured(model.get_submodule(LAYER), "weight", 0.5)
    threshold = dense.abs().flatten().median()
    torch.testing.assert_close(weights(model)[2], torch.where(dense.abs() > threshold, dense, 0), **EXACT)
    step(model)
    pruned = logits(model)
    prune.remove(model.get_submodule(LAYER), "weight")
    torch.testing.assert_close(logits(model), pruned, **EXACT)
    plain = build(seed=1)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(plain), pruned, **EXACT)
    step(model)


@pytest.mark.parametrize("how", ["prune", "weight_norm", "parametrizations.weight_norm"])
def test_a_loop_over_all_modules(how):
    model = build()
    expected = logits(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            REPARAMETRIZED[how](module)
    if how == "prune":
        plain = build()
        for module in plain.backbone.modules():
            if isinstance(module, nn.Conv2d):
                prune.l1_unstructured(module, "weight", 0.5)
                prune.remove(module, "weight")
        prune.l1_unstructured(plain.integration.conv, "weight", 0.5)
        expected = logits(plain)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    step(model)


def test_pruning_layers_globally():
    model, plain = build(), build()
    convolutions = [module for module in model.backbone.modules() if isinstance(module, nn.Conv2d)]
    prune.global_unstructured([(module, "weight") for module in convolutions], prune.L1Unstructured, amount=0.3)
    own = [module for module in plain.backbone.modules() if isinstance(module, nn.Conv2d)]
    sizes = torch.cat([module.weight.detach().abs().flatten() for module in own])
    threshold = sizes.kthvalue(round(0.3 * len(sizes))).values
    with torch.no_grad():
        for module in own:
            module.weight.mul_(module.weight.abs() > threshold)
    torch.testing.assert_close(logits(model), logits(plain), **EXACT)


@pytest.mark.parametrize("how", REPARAMETRIZED)
def test_one_stage_alone_is_refused(how):
    model = build()
    REPARAMETRIZED[how](model.get_submodule(PATHS[1]))
    for run in (logits, nn.Module.state_dict):
        with pytest.raises(UserError, match=rf"^{PATHS[1]}.weight .* in this stage only; .* model.backbone"):
            run(model)


def test_a_layer_with_tensors_of_each_stages_own_is_refused():
    model = build("statistics")
    parametrizations.weight_norm(model.backbone.layer1[0].bn1, "bias", dim=None)
    with pytest.raises(UserError, match=r"backbone\.layer1\.0\.bn1 .* parts of the stage's own"):
        logits(model)


def test_a_block_is_not_taken_for_a_layer():
    """Blocks may depend on the size of the stage's image."""
    model = build("mean own table")
    parametrizations.weight_norm(model.backbone, "cls_token", dim=None)
    with pytest.raises(UserError, match=r"^backbone was re-parametrized .* parts of the stage's own"):
        logits(model)


def test_what_replaces_a_tensor_or_a_layer_of_the_backbone_holds_for_all_stages():
    model = build()
    model.get_submodule(LAYER).weight = weight = nn.Parameter(torch.randn_like(model.get_submodule(LAYER).weight))
    logits(model)
    assert all(model.get_submodule(path).weight is weight for path in PATHS)
    model.backbone.layer1[0].conv1 = layer = nn.Conv2d(32, 32, 3, padding=1, bias=False)
    found = logits(model)
    torch.testing.assert_close(found, by_hand(model, layer.weight), **EXACT)
    assert all(model.get_submodule(path).weight is layer.weight for path in PATHS)
    step(model)


def test_a_new_classifier_of_the_backbone_serves_all_averaged_stages():
    model = build("mean")
    model.backbone.fc = classifier = nn.Linear(model.num_features, 3)
    parts = model.eval().stage_features(images())
    expected = torch.stack([classifier(part.mean((2, 3))) for part in parts]).mean(0)
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-4)


@each_form
@pytest.mark.parametrize("tie_weights", [True, False])
def test_functional_call_leaves_the_model_as_it_was(form, tie_weights):
    model, other = build(form), build(form, seed=1)
    expected, theirs, before = logits(model), logits(other), sharing(model)
    ids = {name: id(tensor) for name, tensor in tensors(model).items()}
    passed = {name: tensor.detach().clone() for name, tensor in other.state_dict().items()}
    with torch.no_grad():
        found = functional_call(model, passed, images(), tie_weights=tie_weights)
    torch.testing.assert_close(found, theirs, **EXACT)
    torch.testing.assert_close(logits(model), expected, **EXACT)
    assert {name: id(tensor) for name, tensor in tensors(model).items()} == ids and sharing(model) == before


def test_an_ensemble_by_vmap_and_training_after_it():
    members = [build("mean", seed=seed) for seed in range(3)]
    for member in members:
        member.eval()
    parameters, buffers = torch.func.stack_module_state(members)
    base, x = members[0], images()
    with torch.no_grad():
        found = torch.vmap(lambda p, b: functional_call(base, (p, b), x))(parameters, buffers)
    expected = torch.stack([logits(member) for member in members])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    step(base)


def test_hooks_run_once_for_the_backbones_layer():
    model = build()
    calls = []
    model.get_submodule(LAYER).register_forward_hook(lambda module, args, output: calls.append(output.shape))
    logits(model)
    assert calls == [(2, 32, 16, 16)]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copy_is_followed_by_its_own_stages(copied):
    model = build("mean")
    model.__dict__.pop("_load_state_dict_pre_hooks", None)
    model._load_state_dict_pre_hooks = {}
    other = copied(model)
    parametrizations.weight_norm(other.get_submodule(LAYER))
    step(other)
    torch.testing.assert_close(logits(model), logits(build("mean")), **EXACT)


@pytest.mark.parametrize("name", ["fc", "classifier", "head"])
@pytest.mark.parametrize("form", ["batch", "mean", "own head"])
def test_a_classifier_set_on_the_network_is_refused(form, name):
    with pytest.raises(UserError, match=rf"model\.{name} would have no effect; call model\.reset_classifier"):
        setattr(build(form), name, nn.Linear(64, 3))


def test_a_layer_of_the_backbone_set_on_the_network_is_refused():
    with pytest.raises(UserError, match=r"set model\.backbone\.layer1"):
        build().layer1 = nn.Identity()
    model = build()
    model.extra = layer = nn.Linear(1, 1)  # means nothing else
    assert model.extra is layer


@pytest.mark.slow
def test_compiled_after_a_layer_was_reparametrized():
    model, plain = build(), build()
    for network in (model, plain):
        parametrizations.weight_norm(network.get_submodule(LAYER))
    with torch.no_grad():
        for network in (model, plain):
            network.get_submodule(LAYER).parametrizations.weight.original0.mul_(2)
        compiled = torch.compile(model.eval(), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images()), logits(plain), **EXACT)


def test_a_network_of_the_features_follows_too():
    model = timm.create_model("wsms_test_resnet", features_only=True).eval()
    parametrizations.weight_norm(model.model.backbone.layer1[0].conv1)
    with torch.no_grad():
        model.model.backbone.layer1[0].conv1.parametrizations.weight.original0.zero_()
        model(images())
    assert not model.model.stages["2"].backbone.layer1[0].conv1.weight.any()


def test_no_tied_tensor_is_listed_as_not_persistent():
    """torch.export takes away every name that it finds among the buffers that are not persistent."""
    model = build("none")
    stage = model.get_submodule(PATHS[1])
    listed = {name for module in model.modules() for name in module._non_persistent_buffers_set}
    assert not listed and "weight" in stage._non_persistent_buffers_set  # torch.distributed.checkpoint asks
    copied = copy.deepcopy(model).get_submodule(PATHS[1])
    assert "weight" in copied._non_persistent_buffers_set and "bias" not in copied._non_persistent_buffers_set
    stage.weight = nn.Parameter(stage.weight.detach().clone())
    model.record_sharing()
    assert "weight" not in stage._non_persistent_buffers_set
    assert f"{PATHS[1]}.weight" in model.state_dict()
