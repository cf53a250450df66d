"""What three ways of sharing weights between stages make of common operations: the table in docs/architecture.md.

    python -m benchmarks.backbones.sharing_table

- tied: the stages' layers hold the backbone's `Parameter` objects, tied again after `.to` and `load_state_dict`.
- one module: a stage's layer *is* the backbone's layer, wherever nothing in it is the stage's own.
- ours: tied, and stages follow the backbone (`timm_wsms/network/ties.py`).

Every entry compares values; "right" is what the plain backbone, or a network written out without sharing, gives.
Rows of LoRA need `pip install peft`.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.checkpoint.state_dict import set_model_state_dict
from torch.func import functional_call, stack_module_state
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import timm_wsms
from timm_wsms.network.ties import duplicate_keys, entries_of, find_owner, find_tensor

LAYER = "backbone.layer1.0.conv1"
PATHS = (LAYER, f"stages.2.{LAYER}", f"stages.3.{LAYER}")
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
Make = Callable[[], Any]


class TieAgain:
    """Tied parameters alone: where both layers have a tensor, they have the same."""

    def __init__(self, model: nn.Module):
        self.keys = duplicate_keys(model)

    def follow(self, model: nn.Module, complain: bool = True) -> None:
        for key, owner in self.keys:
            stage, backbone = find_owner(model, key), find_owner(model, owner)
            if find_tensor(stage, key) is not None and find_tensor(backbone, owner) is not None:
                entries_of(stage, key)[key.rpartition(".")[2]] = find_tensor(backbone, owner)


def ours(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = timm.create_model("wsms_test_resnet", num_classes=5, fusion="mean")
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor.add_(torch.rand_like(tensor) / 2)
    return model


def tied(seed: int = 0) -> Any:
    model = ours(seed)
    model.ties = TieAgain(model)
    return model


def one_module(seed: int = 0) -> Any:
    model = ours(seed)
    for stage in model.stages.values():
        for path, module in [*stage.backbone.named_modules()]:
            tensors = [*module.parameters(), *module.buffers()]
            backbone = model.backbone.get_submodule(path)
            shared = {id(tensor) for tensor in [*backbone.parameters(), *backbone.buffers()]}
            if tensors and not [*module.children()] and all(id(tensor) in shared for tensor in tensors):
                parent, _, name = path.rpartition(".")
                setattr(stage.backbone.get_submodule(parent), name, backbone)
    model.ties = TieAgain(model)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(X)


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> str:
    error = ((found - expected).norm() / expected.norm()).item()
    return "right" if error <= tolerance else f"WRONG, {error:.0e} off"


def step(model: Any) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)  # every parameter moves, whatever its gradient
    model.train()(X).square().mean().backward()
    optimizer.step()


def stages_agree(model: Any) -> str:
    logits(model)
    first, *others = [model.get_submodule(path).weight for path in PATHS]
    return "right" if all(torch.equal(first, other) for other in others) else "WRONG: stages differ"


def reparametrized(change: Callable[[nn.Module], Any], undo: Callable[[nn.Module], Any] | None = None) -> Any:
    def check(make: Make) -> str:
        model = make()
        change(model.get_submodule(LAYER))
        found = [stages_agree(model)]
        step(model)
        found.append(stages_agree(model))
        if undo is not None:
            undo(model.get_submodule(LAYER))
            found.append(stages_agree(model))
            step(model)
            found.append(stages_agree(model))
        return next((text for text in found if text != "right"), "right")

    return check


def loop(make: Make) -> str:
    model = make()
    for module in [*model.modules()]:
        if isinstance(module, nn.Conv2d):
            parametrizations.weight_norm(module)
    step(model)
    return stages_agree(model)


def lora(targets: str) -> Any:
    def check(make: Make) -> str:
        import peft  # here, since the other rows do without

        torch.manual_seed(0)
        config = peft.LoraConfig(target_modules=targets, r=4, init_lora_weights=False)
        model = peft.get_peft_model(make(), config)
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 1e-3)
        model.eval()(X).square().mean().backward()
        optimizer.step()
        trained = logits(model)
        return same(logits(model.merge_and_unload()), trained)

    return check


def untouched(make: Make) -> str:
    model, other = make(), make(1)
    before = {name: id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)}
    found = functional_call(model.eval(), dict(other.state_dict()), X)
    if {name: id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)} != before:
        return "WRONG: leaves the model changed"
    return same(found, logits(other))


def ensemble(make: Make) -> str:
    members = [make(seed).eval() for seed in range(2)]
    expected = torch.stack([logits(member) for member in members])
    parameters, buffers = stack_module_state(members)
    with torch.no_grad():
        found = torch.vmap(lambda p, b: functional_call(members[0], (p, b), X))(parameters, buffers)
    return same(found, expected, 1e-4)


def hook(make: Make) -> str:
    model, calls = make(), []
    model.get_submodule(LAYER).register_forward_hook(lambda *_: calls.append(1))
    logits(model)
    return "right" if len(calls) == 1 else f"WRONG: called {len(calls)} times"


def average(make: Make) -> str:
    model = make()
    ema = ModelEmaV3(model, decay=0.9)
    before = model.get_submodule(LAYER).weight.detach().clone()
    step(model)
    ema.update(model)
    expected = 0.9 * before + 0.1 * model.get_submodule(LAYER).weight
    return same(ema.module.get_submodule(PATHS[1]).weight, expected)


def assigned(make: Make) -> str:
    model, other = make(), make(1)
    model.load_state_dict(other.state_dict(), assign=True)
    step(model)
    return stages_agree(model)


def emptied(make: Make) -> str:
    model, other = make().to("meta").to_empty(device="cpu"), make(1)
    model.load_state_dict(other.state_dict())
    step(model)
    return stages_agree(model)


def copied(make: Make) -> str:
    model = make()
    other = copy.deepcopy(model)
    step(other)
    return stages_agree(other) if same(logits(model), logits(make())) == "right" else "WRONG"


def checkpointed(make: Make) -> str:
    gradients = []
    for enable in (False, True):
        model = make().double()
        model.set_grad_checkpointing(enable)
        model.train()(X.double()).square().mean().backward()
        gradients.append(model.get_submodule(LAYER).weight.grad)
    return same(gradients[1], gradients[0])


def parallel(make: Make) -> str:
    model, plain = DistributedDataParallel(make()), make()
    for _ in range(2):
        step(model)
        step(plain)
    return same(logits(model.module), logits(plain))


def distributed_checkpoint(make: Make) -> str:
    model, other = DistributedDataParallel(make()), make(1)
    set_model_state_dict(model, dict(other.state_dict()))
    return same(logits(model.module), logits(other))


CHECKS: dict[str, Callable[[Make], str]] = {
    "`prune.l1_unstructured`, step, `prune.remove`, step": reparametrized(
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5), lambda layer: prune.remove(layer, "weight")
    ),
    "`weight_norm`, step, `remove_weight_norm`, step": reparametrized(weight_norm, nn.utils.remove_weight_norm),
    "`parametrizations.weight_norm`, step, remove, step": reparametrized(
        parametrizations.weight_norm, lambda layer: nn.utils.parametrize.remove_parametrizations(layer, "weight")
    ),
    "`spectral_norm`, step, `remove_spectral_norm`, step": reparametrized(spectral_norm, nn.utils.remove_spectral_norm),
    "`parametrizations.spectral_norm`, step": reparametrized(parametrizations.spectral_norm),
    "`weight_norm` on every convolution of `model.modules()`": loop,
    "PEFT LoRA on convolutions, trained and merged": lora(r".*layer\d\.\d\.conv\d"),
    'PEFT LoRA, `target_modules="all-linear"`': lora("all-linear"),
    "`functional_call`": untouched,
    "`vmap` over an ensemble": ensemble,
    "forward hook on a layer of the backbone": hook,
    "`timm_wsms.fuse`": lambda make: same(logits(timm_wsms.fuse(make())), logits(make()), 1e-4),
    "`ModelEmaV3`": average,
    "DDP, default flags": parallel,
    "`load_state_dict(assign=True)`": assigned,
    '`to("meta")`, `to_empty`, load': emptied,
    "`deepcopy`": copied,
    "activation checkpointing": checkpointed,
    "`torch.compile(fullgraph=True)`": lambda make: same(
        logits(torch.compile(make(), backend="eager", fullgraph=True)), logits(make())
    ),
    "`set_model_state_dict` under DDP": distributed_checkpoint,
}


def attempt(check: Callable[[Make], str], make: Make) -> str:
    try:
        return check(make)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}".replace("|", "/")


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=1, rank=0)
        print("| operation | tied | one module | ours |\n| --- | --- | --- | --- |")
        for name, check in CHECKS.items():
            print(f"| {name} | {' | '.join(attempt(check, make) for make in (tied, one_module, ours))} |", flush=True)
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
