"""How stages keep sharing weights: tied parameters, with the backbone's layers in the lead.

A stage's layer holds the same `Parameter` objects as the backbone's layer at the same path, in dictionaries of its own:
PyTorch's tied weights. Anything that replaces a tensor or a layer (`prune`, `weight_norm`, LoRA, `.to("meta")`,
`assign=True` …) reaches only one of the layers. The stages then follow the backbone: their layers take its new tensor;
if its layer was re-parametrized or replaced, the stages use that same layer. Where a layer without tensors, such as an
activation, is replaced, each stage gets a copy of the new one, with the same parameters if it has any.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

from timm_wsms.errors import UserError

Entries = dict[str, Any]  # of a module: its `_parameters`, `_buffers` or `_modules`


class Follower(NamedTuple):
    """A stage's module that is replaced when the backbone's at the same path is.

    Attributes:
        own: Modules of its parent in the stage, by name.
        name: Its name.
        module: The stage's.
        leading: Modules of its parent in the backbone.
        lead: The backbone's.
        siblings: Names in `leading`.
        path: Of the backbone's, in the model.
    """

    own: Entries
    name: str
    module: nn.Module
    leading: Entries
    lead: nn.Module
    siblings: tuple[str, ...]
    path: str


class Ties:
    """Which tensors of the stages are the backbone's, and whether they still are.

    Args:
        model: Has a `backbone`, and `stages` in which each shared tensor has the same path as in the backbone.

    Attributes:
        keys: (key, the backbone's key) of every shared tensor in a stage.
        mixed: Paths of the modules in stages that hold tensors of their own, anywhere below.
        composed: Paths of the modules that have parts. They may depend on the size of the stage's image.
    """

    def __init__(self, model: nn.Module):
        self.keys = duplicate_keys(model)
        tied = {key for key, _ in self.keys}
        own = [key for key, _ in named_tensors(model) if key not in tied and key.startswith("stages.")]
        self.mixed = {path for key in own for path in _prefixes(key)}
        self.unshared = {"backbone" + path.partition(".backbone")[2] for path in self.mixed if ".backbone." in path}
        modules = nn.Module.named_modules(model, remove_duplicate=False)
        self.composed = {path for path, module in modules if module._modules}
        self._replaced: set[str] = set()
        self._watch(model)

    def follow(self, model: nn.Module, complain: bool = True) -> None:
        """Let the stages follow changes to the backbone's layers since the last call.

        Args:
            model: The one that it was made for.
            complain: False: leave the error about a change in one stage to a later call.

        Raises:
            UserError: If a shared tensor was changed in one stage only, or if the stages cannot follow.
        """
        if self._intact():
            return
        for key, owner in self.keys:
            stage, backbone = find_owner(model, key), find_owner(model, owner)
            found, leading = find_tensor(stage, key), find_tensor(backbone, owner)
            if found is leading is not None or stage is backbone is not None:
                continue
            level = self._changed(model, owner)
            if leading is not None and leading is self._known[owner] and level is None:
                if not complain:
                    return
                raise UserError(
                    f"{key} is the backbone's {owner} and was changed in this stage only; change the layer of "
                    "model.backbone instead, which all stages follow"
                )
            if hasattr(leading, "device_mesh") and not hasattr(found, "device_mesh"):
                raise UserError(
                    f"FSDP shards {owner} with a part of the backbone, but the stages use it too; "
                    "call fully_shard on the whole network only, or use DistributedDataParallel"
                )
            if level is not None:
                self._refuse_folded(model, level)
            if found is not None and leading is not None:
                entries_of(stage, key)[_name(key)] = leading
            else:
                self._adopt(model, key, owner, level)
        if not self._follow_without_tensors(complain):
            return
        self._watch(model)

    def _follow_without_tensors(self, complain: bool) -> bool:
        """Give the stages copies of what replaced a layer without tensors; False: an error is left to a later call."""
        for one in self._without_tensors:
            new = one.leading.get(one.name)
            if new is None or new is one.lead or one.own.get(one.name) is not one.module:
                continue  # unchanged, or changed in the stage too
            if (*one.leading,) != one.siblings:
                continue  # layers of a Sequential that moved
            if any("running_var" in module._buffers for module in new.modules()):
                if complain:
                    raise UserError(
                        f"{one.path} was replaced by a layer with running statistics, and every stage has its own of "
                        "these; set one in each of model.stages too"
                    )
                return False
            one.own[one.name] = copy.deepcopy(new, {id(tensor): tensor for tensor in new.parameters()})
            self._replaced.add(one.path)
        return True

    def _adopt(self, model: nn.Module, key: str, owner: str, replaced: str | None) -> None:
        """Put the backbone's layer, which was re-parametrized or replaced, into the stage as well."""
        level = replaced or owner.rpartition(".")[0]
        path = key.removesuffix(owner) + level
        if not key.endswith(owner) or path in self.mixed or (replaced is None and path in self.composed):
            raise UserError(
                f"{level} was re-parametrized or replaced, but {path} has parts of the stage's own, so they cannot be "
                "one layer; undo it (norms and timm's re-parameterizable blocks: timm_wsms.fuse), or build the network "
                "with share_weights=False"
            )
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent)._modules[name] = model.get_submodule(level)

    def _refuse_folded(self, model: nn.Module, level: str) -> None:
        """Raise if a norm next to a new layer is gone, as if folded into it, but the stages have their own."""
        parent = level.rpartition(".")[0]
        for name, module in model.get_submodule(parent)._modules.items():
            path = f"{parent}.{name}"
            if path in self.unshared and (module is None or next(named_tensors(module), None) is None):
                raise UserError(
                    f"{level} was replaced and {path} removed, as if folded in, but the stages have norms of their "
                    "own; fold them with timm_wsms.fuse"
                )

    def _changed(self, model: nn.Module, key: str) -> str | None:
        """The first module on the way to a tensor that is not the one it was."""
        modules = {path: find_owner(model, f"{path}.") for path in _prefixes(key)}
        return next((path for path, module in modules.items() if module is not self._modules.get(path)), None)

    def _intact(self) -> bool:
        return (
            all(entries.get(name) is module for entries, name, module in self._places)
            and all(own.get(name, self) is leading.get(lead) for own, name, leading, lead in self._pairs)
            and all(one.leading.get(one.name) is one.lead for one in self._without_tensors)
        )

    def _watch(self, model: nn.Module) -> None:
        """Record the current state."""
        modules = dict(nn.Module.named_modules(model, remove_duplicate=False))
        for module in modules.values():  # what is no longer shared belongs in checkpoints again
            if isinstance(module._non_persistent_buffers_set, _NotPersistent):
                module._non_persistent_buffers_set.tied.clear()
        paths = {path for pair in self.keys for key in pair for path in _prefixes(key)}
        self._modules = {path: modules[path] for path in paths if path in modules}
        self._places: list[tuple[Entries, str, nn.Module]] = []
        for path, module in self._modules.items():
            parent, _, name = path.rpartition(".")
            self._places.append((modules[parent]._modules, name, module))
        self._pairs: list[tuple[Entries, str, Entries, str]] = []
        self._known: dict[str, Any] = {}
        for key, owner in self.keys:
            stage, backbone = (modules.get(one.rpartition(".")[0]) for one in (key, owner))
            self._known[owner] = find_tensor(backbone, owner)
            if stage is None or stage is backbone:
                continue
            self._pairs.append((entries_of(stage, key), _name(key), entries_of(backbone, owner), _name(owner)))
            if not isinstance(stage._non_persistent_buffers_set, _NotPersistent):
                stage._non_persistent_buffers_set = _NotPersistent(stage._non_persistent_buffers_set)
            stage._non_persistent_buffers_set.tied.add(_name(key))
        self._without_tensors = [*self._find_without_tensors(model, modules)]

    def _find_without_tensors(self, model: nn.Module, modules: dict[str, nn.Module]) -> Iterator["Follower"]:
        """Modules of the stages that follow one of the backbone's without tensors, or one that replaced such."""
        stages = {key.removesuffix(owner) for key, owner in self.keys if key.endswith(owner)}
        with_tensors = {path for key, _ in named_tensors(model) for path in _prefixes(key)}
        for path, lead in modules.items():
            parent, _, name = path.rpartition(".")
            if not path.startswith("backbone.") or (path in with_tensors and path not in self._replaced):
                continue
            for stage in stages:
                own = modules.get(stage + path)
                if own is not None and type(own) is type(lead) and _settings(own) == _settings(lead):
                    leading = modules[parent]._modules
                    yield Follower(modules[stage + parent]._modules, name, own, leading, lead, (*leading,), path)


class _NotPersistent(set[str]):
    """A module's `_non_persistent_buffers_set` that, asked for a name, also says yes to tied tensors.

    torch.distributed.checkpoint asks for each tensor of a module, parameters included, whether this set has its name,
    and has no other way to leave one out of a checkpoint. torch.export iterates over the names and removes each from
    the tensors that the program may use: there, only buffers that truly are not persistent may appear.

    Attributes:
        tied: Names of the module's tensors that a checkpoint has under the backbone's name.
    """

    def __init__(self, names: Iterable[str] = ()):
        super().__init__(names)
        self.tied: set[str] = set()

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.tied

    def discard(self, name: object) -> None:
        """As in a set; a tensor that is registered again is not tied."""
        super().discard(name)
        self.tied.discard(name)

    def copy(self) -> set[str]:
        """A plain set: a copy of the module may not be tied to anything."""
        return set(self)


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module was built with, as far as it keeps numbers, words and tuples."""
    plain = (int, float, str, tuple, type(None))
    return {name: value for name, value in vars(module).items() if name != "training" and isinstance(value, plain)}


def untie(copied: nn.Module) -> None:
    """Make checkpoints hold every tensor of a copy of a stage or a backbone, which is not tied to anything."""
    for module in copied.modules():
        if isinstance(module._non_persistent_buffers_set, _NotPersistent):
            module._non_persistent_buffers_set = module._non_persistent_buffers_set.copy()


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every parameter and buffer by name, a shared one under each of its names."""
    for path, module in nn.Module.named_modules(model, remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for entries in (module._parameters, module._buffers):
            yield from ((prefix + name, tensor) for name, tensor in entries.items() if tensor is not None)


def duplicate_keys(model: nn.Module) -> list[tuple[str, str]]:
    """(key, key of the first) of every tensor that is in a model a second time."""
    first: dict[int, str] = {}
    named = named_tensors(model)
    return [(key, owner) for key, tensor in named if (owner := first.setdefault(id(tensor), key)) != key]


def _prefixes(key: str) -> list[str]:
    """The paths of all modules on the way to a tensor, the outermost first."""
    parts = key.split(".")[:-1]
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def find_owner(model: nn.Module, key: str) -> nn.Module | None:
    """The module that a tensor belongs to; None if there is none at its path."""
    module: nn.Module | None = model
    for name in key.split(".")[:-1]:
        module = None if module is None else module._modules.get(name)
    return module


def _name(key: str) -> str:
    return key.rpartition(".")[2]


def entries_of(module: Any, key: str) -> Entries:
    """The dictionary of a module in which a tensor stands, or used to."""
    return module._buffers if _name(key) in module._buffers else module._parameters


def find_tensor(module: nn.Module | None, key: str) -> Any:
    return None if module is None else entries_of(module, key).get(_name(key))
