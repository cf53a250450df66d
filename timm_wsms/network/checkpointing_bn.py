"""Batch normalization under activation checkpointing: the recomputation must not count a batch a second time."""

from typing import Any

import torch
from torch import nn


def update_statistics_once(model: nn.Module, enable: bool = True) -> None:
    """Keep the running statistics as they are while `torch.utils.checkpoint` recomputes a forward pass.

    Args:
        model: All of its batch normalizations get two hooks.
        enable: False removes the hooks.
    """
    for module in model.modules():
        if "running_var" not in module._buffers:
            continue
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_hold, _release)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
        if enable:
            module.register_forward_pre_hook(_hold)
            # recomputation is cut short by an exception as soon as it has what it needs, so: always
            module.register_forward_hook(_release, always_call=True)


def _recomputing() -> bool:
    # Inside the autograd engine, which only this private function tells; torch's own checkpointing asks it too.
    # A compiled graph never comes here, since its recomputation repeats no mutation.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _hold(module: Any, _args: Any) -> None:
    if module.training and _recomputing():
        module._held = (module.momentum, module.num_batches_tracked.clone())
        module.momentum = 0.0  # running ← 1 × running + 0 × batch


def _release(module: Any, _args: Any, _output: Any) -> None:
    if (held := module.__dict__.pop("_held", None)) is not None:
        module.momentum, tracked = held
        module.num_batches_tracked.copy_(tracked)
