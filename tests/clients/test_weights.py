"""What puts another tensor in the place of a weight, or reads and writes all of them."""

import copy
import importlib

import pytest
import torch
from safetensors.torch import load_model, save_model
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load, save
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, stack_module_state
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

from tests.helpers.clients import CLOSE, backbone_of, build, client, run, stages_agree, step
from tests.helpers.networks import EXACT, check_same, images

LAYER = "layer1.0.conv1"
X = images(64)


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", world_size=1, rank=0)
    yield
    torch.distributed.destroy_process_group()


def layer_of(model):
    return backbone_of(model).get_submodule(LAYER)


@client("torch", "`prune.l1_unstructured`: logits are those of a weight with zeros; a step; `prune.remove`")
def test_prune(form):
    model, expected = build(form), build(form)
    prune.l1_unstructured(layer_of(model), "weight", 0.5)
    weight = layer_of(expected).weight.data
    weight[weight.abs() <= weight.abs().median()] = 0
    torch.testing.assert_close(run(model, X), run(expected, X), **CLOSE)
    step(model, X)
    stages_agree(model, LAYER, X)
    trained = run(model, X)
    prune.remove(layer_of(model), "weight")
    assert (layer_of(model).weight == 0).float().mean() == 0.5
    torch.testing.assert_close(run(model, X), trained, **EXACT)


@client("torch", "`prune.global_unstructured` over the backbone's convolutions: the fraction of zeros, and the logits")
def test_prune_globally(form):
    model, expected = build(form), build(form)
    prune.global_unstructured(
        [(layer, "weight") for layer in backbone_of(model).modules() if isinstance(layer, nn.Conv2d)],
        pruning_method=prune.L1Unstructured,
        amount=0.3,
    )
    weights = [layer.weight.data for layer in backbone_of(expected).modules() if isinstance(layer, nn.Conv2d)]
    values = torch.cat([weight.flatten() for weight in weights]).abs()
    threshold = values.sort().values[round(0.3 * len(values))]
    for weight in weights:
        weight[weight.abs() < threshold] = 0
    torch.testing.assert_close(run(model, X), run(expected, X), **CLOSE)


NORMS = {
    "weight_norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "spectral_norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
    "parametrizations.weight_norm": (
        parametrizations.weight_norm,
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ),
    "parametrizations.spectral_norm": (
        parametrizations.spectral_norm,
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ),
}


@client("torch", "`weight_norm` and `spectral_norm`, both APIs: one weight for all stages, through a step and removal")
def test_weight_and_spectral_norm(form):
    for name, (change, undo) in NORMS.items():
        model = build(form)
        before = run(model, X)
        change(layer_of(model))
        if "weight" in name:
            torch.testing.assert_close(run(model, X), before, **CLOSE)
        step(model, X)
        stages_agree(model, LAYER, X)
        trained = run(model, X)
        undo(layer_of(model))
        torch.testing.assert_close(run(model, X), trained, **CLOSE)
        step(model, X)
        stages_agree(model, LAYER, X)


@client("torch", "`functional_call` and `vmap` over an ensemble: each member's logits; the model stays as it was")
def test_functional_call(form):
    members = [build(form, seed) for seed in range(2)]
    before = copy.deepcopy(members[0].state_dict())
    found = functional_call(members[0], members[1].state_dict(), X)
    torch.testing.assert_close(found, members[1](X), **CLOSE)
    parameters, buffers = stack_module_state(members)
    found = torch.vmap(lambda *state: functional_call(members[0], state, X))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([member(X) for member in members]), rtol=1e-3, atol=1e-4)
    check_same(members[0].state_dict(), before)


@client("torch", "`AveragedModel`: parameters after two steps are the average")
def test_averaged_model(form):
    model = build(form)
    average, seen = AveragedModel(model), []
    for _ in range(2):
        step(model, X)
        average.update_parameters(model)
        seen.append({name: tensor.detach().clone() for name, tensor in model.named_parameters()})
    expected = {name: (seen[0][name] + seen[1][name]) / 2 for name in seen[0]}
    check_same(dict(average.module.named_parameters()), expected, **CLOSE)
    stages_agree(average.module, LAYER, X)


@client("timm", "`ModelEmaV3`: parameters after a step are 0.9 · old + 0.1 · new")
def test_model_ema(form):
    model = build(form)
    ema, old = ModelEmaV3(model, decay=0.9), copy.deepcopy(dict(model.named_parameters()))
    step(model, X)
    ema.update(model)
    expected = {name: 0.9 * old[name] + 0.1 * new for name, new in model.named_parameters()}
    check_same(dict(ema.module.named_parameters()), expected, **CLOSE)
    stages_agree(ema.module, LAYER, X)


@client("safetensors", "`save_model`, `load_model`: strict, logits bit for bit")
def test_safetensors(form, tmp_path):
    model, other = build(form), build(form, seed=1)
    save_model(model, tmp_path / "model.safetensors")
    assert load_model(other, tmp_path / "model.safetensors") == (set(), [])
    torch.testing.assert_close(run(other, X), run(model, X), **EXACT)


@client("torch", "`torch.distributed.checkpoint` under DDP: saved and loaded, logits bit for bit")
def test_distributed_checkpoint(form, one_process, tmp_path):
    model, other = DistributedDataParallel(build(form)), DistributedDataParallel(build(form, seed=1))
    save(get_model_state_dict(model), storage_writer=FileSystemWriter(tmp_path / "saved"))
    state = get_model_state_dict(other)
    load(state, storage_reader=FileSystemReader(tmp_path / "saved"))
    found = set_model_state_dict(other, state)
    assert not found.missing_keys and not found.unexpected_keys
    torch.testing.assert_close(run(other, X), run(model, X), **EXACT)


@client("torch", "FSDP2 (`fully_shard`) of the whole network: logits and gradients")
def test_fsdp(form, one_process):
    model, expected = build(form), build(form)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    torch.testing.assert_close(run(model, X), run(expected, X), **EXACT)
    for network in (model, expected):
        network(X).square().mean().backward()
    found = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    check_same(found, {name: parameter.grad for name, parameter in expected.named_parameters()}, **CLOSE)


@client("torch", "`nn.DataParallel` without a GPU; replicas as it makes them, on the CPU: logits and gradients")
def test_data_parallel(form, monkeypatch):
    model, expected = build(form), build(form)
    torch.testing.assert_close(run(nn.DataParallel(model), X), run(expected, X), **EXACT)

    def broadcast(tensors, devices, detach=False):
        """In place of copies on GPUs: other values, so that a layer with the model's own tensors is noticed."""
        return [[1.1 * (one.detach() if detach else one) for one in tensors] for _ in devices]

    module = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", broadcast)
    monkeypatch.setattr(module, "_get_device_index", lambda device, *_: device)
    replicas = module.replicate(model, [0, 1])
    with torch.no_grad():
        for tensor in [*expected.parameters(), *expected.buffers()]:
            tensor.copy_(1.1 * tensor)
    found = torch.cat([replica(x) for replica, x in zip(replicas, X.split(1), strict=True)])
    torch.testing.assert_close(found, expected(X), **CLOSE)
    found.square().mean().backward()
    expected(X).square().mean().backward()
    gradients = {name: 1.1 * parameter.grad for name, parameter in expected.named_parameters()}
    check_same({name: parameter.grad for name, parameter in model.named_parameters()}, gradients, rtol=1e-3, atol=1e-5)


def lora(form, targets, **arguments):
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=targets, r=4, init_lora_weights=False, **arguments)
    return peft.get_peft_model(build(form), config)


@client("peft", "LoRA on convolutions: trained; merged; saved and loaded: the same logits")
def test_lora(form, tmp_path):
    import peft

    model = lora(form, r".*layer\d\.\d\.conv\d", modules_to_save=["fc"])
    step(model, X)
    trained = run(model, X)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(build(form), str(tmp_path))
    torch.testing.assert_close(run(again, X), trained, **CLOSE)
    merged = model.merge_and_unload()
    torch.testing.assert_close(run(merged, X), trained, **CLOSE)
    assert merged.state_dict().keys() == build(form).state_dict().keys()


@client("peft", 'LoRA, `target_modules="all-linear"`: merged logits are the trained ones')
def test_lora_on_all_linear(form):
    model = lora(form, "all-linear")
    step(model, X)
    trained = run(model, X)
    assert (trained - run(build(form), X)).abs().max() > 1e-3
    torch.testing.assert_close(run(model.merge_and_unload(), X), trained, **CLOSE)


@client("torchao", "int8 weight-only on the classifier: logits are those of the rounded weight")
def test_int8_weight_only(form):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model, expected = build(form), build(form)
    with torch.no_grad():
        weight = backbone_of(expected).fc.weight
        scale = weight.abs().amax(1, keepdim=True) / 127.5
        weight.copy_((weight / scale).round().clamp(-128, 127) * scale)
    quantize_(model, Int8WeightOnlyConfig())
    assert "int8" in str(backbone_of(model).fc.weight.dtype) or type(backbone_of(model).fc.weight) is not nn.Parameter
    torch.testing.assert_close(run(model, X), run(expected, X), rtol=1e-2, atol=1e-2)
    assert (run(model, X) - run(build(form), X)).abs().max() > 0
