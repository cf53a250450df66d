"""Batch norms for training on a GPU: fused with what follows them, or those of stacked networks as one."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from timm_wsms.backbones.cifar_resnet import BasicBlock

MOMENTUM, EPS = 0.1, 1e-5  # of every norm of these networks


def norm_act(
    x: torch.Tensor, shortcut: torch.Tensor | None, weight: Any, bias: Any, mean: Any, variance: Any
) -> torch.Tensor:
    """Batch norm of training, the shortcut, ReLU. Compiled: one kernel for statistics and one for the rest."""
    x = F.batch_norm(x, mean, variance, weight, bias, True, MOMENTUM, EPS)
    return F.relu(x if shortcut is None else x + shortcut)


def fused_function(backend: str = "inductor") -> Any:
    """`norm_act`, compiled for each shape when it is met."""
    torch._dynamo.config.recompile_limit = 64  # there are about 12 shapes; the default, 8, raises an error
    return torch.compile(norm_act, backend=backend, dynamic=False, fullgraph=True)


def fuse_norms(network: nn.Module, function: Any) -> None:
    """Lets the basic blocks call `function`, a compiled `norm_act`, in training.

    The function is compiled once for each shape, not the network: that would take minutes.
    """
    for block in network.modules():
        if isinstance(block, BasicBlock):
            assert not any(isinstance(norm, BatchNormAct2d) for norm in (block.bn1, block.bn2))
            block.forward = MethodType(_fused_forward, block)
            block.norm_act = function


def _fused_forward(block: Any, x: torch.Tensor) -> torch.Tensor:
    if not block.training:
        return BasicBlock.forward(block, x)
    shortcut = x
    if block.new_channels:
        half = block.new_channels // 2
        padding = (0, 0, 0, 0, half, block.new_channels - half)
        shortcut = F.pad(x[:, :, :: block.stride, :: block.stride], padding)
    first, second = ((norm.weight, norm.bias, norm.running_mean, norm.running_var) for norm in (block.bn1, block.bn2))
    return block.norm_act(block.conv2(block.norm_act(block.conv1(x), None, *first)), shortcut, *second)


class StackedNorm(torch.autograd.Function):
    """Batch norm of training under `torch.vmap`: one batch norm over all networks' channels.

    PyTorch's own rule applies weight and bias in operations of their own and does not take bfloat16 maps with float32
    statistics.
    """

    @staticmethod
    def forward(*args: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("only under torch.vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing: autograd looks into `vmap`."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], x: torch.Tensor, *of_norm: torch.Tensor) -> tuple[torch.Tensor, int]:
        """x (n, B, C, h, w) in any order, and weight, bias, mean and variance (n, C) → (B, n, C, h, w) and 1."""
        assert in_dims[1:] == (0, 0, 0, 0)
        weight, bias, mean, variance = (values.view(-1) for values in of_norm)  # views: the statistics are updated
        x = x.movedim(in_dims[0], 1).flatten(1, 2)  # (B, n · C, h, w)
        x = F.batch_norm(x, mean, variance, weight, bias, True, MOMENTUM, EPS)
        return x.unflatten(1, (info.batch_size, -1)), 1


def stack_norms(network: nn.Module) -> None:
    """Lets all batch norms use `StackedNorm` in training."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert (norm.momentum, norm.eps) == (MOMENTUM, EPS)
            norm.forward = MethodType(_stacked_forward, norm)


def _stacked_forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    x = StackedNorm.apply(x, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return norm.act(norm.drop(x)) if isinstance(norm, BatchNormAct2d) else x
