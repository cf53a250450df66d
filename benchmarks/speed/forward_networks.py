"""The networks that forward.py compares, one step of each, and what a step takes in arithmetic and memory.

All forms run on the weights of one and the same WsmsNet: copies of a network, at other places in memory, differ in
speed by some percent.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import timm_wsms  # noqa: F401  registers the names
from timm_wsms.evaluation.cost import multiplications as count
from timm_wsms.network.fuse import fuse

SIDE = 224  # pixels
SCALES = 3
TURN = 0.2  # seconds that a form's turn in a round takes at least


class MultiScale(nn.Module):
    """The whole backbone on the image, its half and its quarter; pooled features concatenated (S²-Wrapper).

    Args:
        backbones: The backbone for each scale, largest first; thrice the same one if it takes any image size.
        sides: Side of the image in pixels that each takes; a smaller image is padded with zeros.
    """

    def __init__(self, backbones: Iterable[Any], sides: Iterable[int]):
        super().__init__()
        self.backbones = nn.ModuleList(backbones)
        self.sides = tuple(sides)
        first: Any = self.backbones[0]
        self.classifier = nn.Linear(SCALES * first.head_hidden_size, first.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → (B, num_classes)."""
        features = []
        for backbone, side in zip(self.backbones, self.sides, strict=True):
            x = F.avg_pool2d(x, 2) if features else x
            missing = side - x.shape[-1]
            padded = F.pad(x, (0, missing, 0, missing)) if missing else x
            features.append(backbone.forward_head(backbone.forward_features(padded), pre_logits=True))
        return self.classifier(torch.cat(features, 1))  # (B, 3 · head_hidden_size) → (B, num_classes)


def multi_scale(name: str, backbone: Any) -> MultiScale:
    """The wrapper around a backbone; around one for each image size, with shared weights, if a backbone has but one."""
    sides = [SIDE >> scale for scale in range(SCALES)]
    if not backbone.default_cfg.get("fixed_input_size"):
        return MultiScale([backbone] * SCALES, sides)
    patch = backbone.patch_embed.patch_size[0]
    sides = [-(-side // patch) * patch for side in sides]
    smaller = [timm.create_model(name, num_classes=backbone.num_classes, img_size=side) for side in sides[1:]]
    for other in smaller:
        for path, module in other.named_modules():
            own = backbone.get_submodule(path)._parameters
            shared = {key: own[key] for key, value in module._parameters.items() if _same_shape(value, own[key])}
            module._parameters.update(shared)  # all but the tables whose shape depends on the image's
    return MultiScale([backbone, *smaller], sides)


def _same_shape(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape


def build_forms(name: str, training: bool, fused: bool = False, device: str = "cpu") -> dict[str, nn.Module]:
    """The backbone, its WSMS form, the multi-scale wrapper; the first two once more with folded norms, if any.

    Args:
        name: Of the backbone in timm's registry.
        training: In which mode they are.
        fused: Whether the forms with folded norms are wanted.
        device: Where they are.
    """
    network: Any = timm.create_model(f"wsms_{name}")
    forms: dict[str, nn.Module] = {
        "backbone": network.backbone,
        "wsms": network,
        "multi_scale": multi_scale(name, network.backbone),
    }
    if fused and any(isinstance(module, nn.BatchNorm2d) for module in network.backbone.modules()):
        folded: Any = fuse(network)
        forms |= {"backbone_fused": folded.backbone, "wsms_fused": folded}
    for form in forms.values():
        form.train(training).to(device, memory_format=layout_of(name))
    return forms


def compile_forms(forms: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Each form as one graph, and the WSMS form once more with a graph per stage."""
    network: Any = forms["wsms"]
    own = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    per_stage = copy.deepcopy(network, own)  # the same tensors
    per_stage.compile_stages()
    whole: dict[str, nn.Module] = {form: torch.compile(one, dynamic=False) for form, one in forms.items()}
    return whole | {"wsms_per_stage": per_stage}


def layout_of(name: str) -> torch.memory_format:
    """Channels last for the CNNs; transformers, of a fixed image size, have no use for it."""
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    return torch.contiguous_format if fixed else torch.channels_last


def mixed_precision(images: torch.Tensor, bf16: bool) -> AbstractContextManager:
    """bfloat16 for whatever autocast takes to it, on the images' device; or nothing."""
    return torch.autocast(images.device.type, torch.bfloat16, enabled=bf16)


class InferenceStep:
    """One forward pass without gradients."""

    def __init__(self, network: nn.Module, images: torch.Tensor, bf16: bool = False):
        self.network, self.images, self.bf16 = network, images, bf16

    def __call__(self) -> None:
        with torch.no_grad(), mixed_precision(self.images, self.bf16):
            self.network(self.images)


class TrainingStep:
    """Forward pass, loss, backward pass and an update by momentum SGD, of length 0 so that the weights stay."""

    def __init__(self, network: nn.Module, images: torch.Tensor, bf16: bool = False):
        self.network, self.images, self.bf16 = network, images, bf16
        self.labels = torch.arange(len(images), device=images.device)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

    def __call__(self) -> None:
        with mixed_precision(self.images, self.bf16):
            loss = F.cross_entropy(self.network(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def held_bytes(self) -> int:
        """What is there before a step: parameters that are trained, their momentum, buffers and images."""
        parameters = sum(parameter.nbytes for parameter in self.optimizer.state)
        return 2 * parameters + sum(buffer.nbytes for buffer in self.network.buffers()) + self.images.nbytes


def relocate(networks: Iterable[nn.Module], generator: random.Random) -> list[torch.Tensor]:
    """Move every parameter and buffer to another place in memory, as if the networks had been built anew.

    Returns:
        What has to be held to keep the places as they are: tensors that stand between.
    """
    tensors = {id(tensor): tensor for network in networks for tensor in (*network.parameters(), *network.buffers())}
    ballast = []
    for tensor in generator.sample(list(tensors.values()), len(tensors)):
        ballast.append(torch.empty(generator.randrange(1, 1 << 14), device=tensor.device))
        tensor.data = tensor.data.clone()
    return ballast


def multiplications(network: nn.Module) -> int:
    """Multiplications of a forward pass for one image.

    A step of training takes three times as many, but for the first layer. torch's counter, asked for the backward pass
    of convolutions in groups, counts them as if they were in one.
    """
    return count(network, (3, SIDE, SIDE))


def peak_bytes(step: TrainingStep) -> int:
    """The most that PyTorch's allocator has given out at any time of a step of training.

    On a CPU counted from the allocator's own events, so it is the same in every run, which a process's resident memory
    is not; it holds for compiled networks too. What oneDNN allocates for itself while a kernel runs isn't in it. On a
    GPU PyTorch's allocator keeps count.
    """
    if step.images.is_cuda:
        device = step.images.device
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)  # other networks' too
        step()
        return step.held_bytes() + torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return step.held_bytes() + peak


def take_turns(
    steps: dict[str, Any], networks: Iterable[nn.Module], seconds: float, rounds: int
) -> dict[str, list[float]]:
    """Seconds a step of every form, one figure a round; a round with new places in memory and another order each."""
    calls = {form: max(1, round(TURN / seconds_a_call(step, 1))) for form, step in steps.items()}
    times: dict[str, list[float]] = {form: [] for form in steps}
    generator = random.Random(0)
    order, number, until = list(steps), 0, time.perf_counter() + seconds
    while number < rounds or time.perf_counter() < until:
        ballast = relocate(networks, generator)
        for form in order[:: 1 if number % 2 == 0 else -1]:
            if calls[form] > 1:
                steps[form]()  # what it needs is in the cache, as in a row of steps
            times[form].append(seconds_a_call(steps[form], calls[form]))
        order = [*order[1:], order[0]] if number % 2 else order
        number += 1
        del ballast
    return times


def seconds_a_call(step: Callable[[], Any], calls: int) -> float:
    """Mean time of some calls in a row, until a GPU has finished them."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(calls):
        step()
    wait()
    return (time.perf_counter() - started) / calls
