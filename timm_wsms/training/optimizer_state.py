"""Optimizer states as tensors and JSON, instead of a pickle."""

from typing import Any

import torch
from torch.optim import Optimizer

COUNTERS = {"lookahead_step"}  # timm's Lookahead counts in its hyperparameters; others add their counts later


def flatten_state(tree: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """Moves the tensors out of a tree of dicts, lists, tuples and plain values.

    Args:
        tree: the tree; not modified.
        tensors: receives them, each under its path, e.g. `state.3.momentum_buffer`.
        path: path of `tree` itself.

    Returns:
        What is left, for JSON; types that JSON does not have (tuples, integer keys) are spelled out.

    Raises:
        TypeError: the tree holds something else.
    """
    if isinstance(tree, torch.Tensor):
        tensors[path] = tree
        return {"tensor": path}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, dict):
        below = path + "." if path else ""
        return {"dict": [[key, flatten_state(value, tensors, f"{below}{key}")] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        items = [flatten_state(value, tensors, f"{path}.{number}") for number, value in enumerate(tree)]
        return {type(tree).__name__: items}
    raise TypeError(f"{path} is a {type(tree).__name__}, which a checkpoint cannot hold")


def unflatten_state(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Inverse of `flatten_state`."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten_state(value, tensors) for key, value in content}
    items = [unflatten_state(value, tensors) for value in content]
    return tuple(items) if kind == "tuple" else items


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Restores an optimizer's state, but not its hyperparameters: the settings may have changed since.

    Args:
        optimizer: as it was built.
        saved: what its `state_dict` was.

    Raises:
        ValueError: its parameter groups differ.
    """
    built = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, now in zip(optimizer.param_groups, built, strict=True):
        group.update((key, value) for key, value in now.items() if key not in COUNTERS)
    _like_parameters(optimizer)


def _like_parameters(optimizer: Optimizer) -> None:
    """Gives states the memory order of their parameters (such as channels last), which files do not keep."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
