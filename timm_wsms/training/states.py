"""An optimizer's state as tensors and JSON, instead of a pickle."""

from typing import Any

import torch


def split(tree: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """Moves the tensors out of a tree of dicts, lists, tuples and plain values.

    Args:
        tree: the tree; it is left as it is.
        tensors: receives them, each under its path, e.g. `state.3.momentum_buffer`.
        path: of `tree` itself.

    Returns:
        What is left, for JSON; types that JSON does not know (tuples, integer keys) are spelled out.

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
        return {"dict": [[key, split(value, tensors, f"{below}{key}")] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        items = [split(value, tensors, f"{path}.{number}") for number, value in enumerate(tree)]
        return {type(tree).__name__: items}
    raise TypeError(f"{path} is a {type(tree).__name__}, which a checkpoint cannot hold")


def join(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Returns what `split` was given."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: join(value, tensors) for key, value in content}
    items = [join(value, tensors) for value in content]
    return tuple(items) if kind == "tuple" else items
