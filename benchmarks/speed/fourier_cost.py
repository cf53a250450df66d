"""What a step takes with the convolutions of fourier_convolution.py, against PyTorch's own, on the CPU.

    python -m benchmarks.speed.fourier_cost

`mnist_cnn` and its averaging over 1.4, 1, 0.7 at 56×56, 128 images, eager, one thread; the two take turns on the same
weights, and the ratio is the median of the rounds' own. Outputs and gradients are compared too.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

import timm_wsms  # noqa: F401
from benchmarks.common.environment import ROOT, record
from benchmarks.common.fourier_convolution import fourier_convolutions
from benchmarks.speed.forward_networks import take_turns

NETWORKS = {
    "mnist_cnn": ("mnist_cnn", {}),
    "mean 1.4 1 0.7": ("wsms_mnist_cnn", {"fusion": "mean", "pyramid": [1.4, 1, 0.7]}),
}
SIDE, BATCH = 56, 128
WAYS = {"usual": nullcontext, "fourier": fourier_convolutions}


def learns(network: nn.Module, images: torch.Tensor) -> None:
    """Forward and backward pass."""
    network.zero_grad()
    F.cross_entropy(network(images), torch.arange(len(images)) % 10).backward()


def looks(network: nn.Module, images: torch.Tensor) -> None:
    """Forward pass without gradients."""
    with torch.no_grad():
        network(images)


def measure(name: str, arguments: dict[str, Any], batch: int, side: int, rounds: int) -> dict[str, Any]:
    """Ratios of time, and how far outputs and gradients are apart, in parts of the largest value of a tensor."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10, drop_rate=0, **arguments).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 1, side, side)
    # before the timing, whose number of steps, and so the running statistics, depend on the clock
    values = [_outputs_and_gradients(network.eval(), images, way) for way in WAYS]
    apart = [(one - other).abs().max() / one.abs().max() for one, other in zip(*values, strict=True)]
    network.train()

    def turn(way: str, step: Callable[[nn.Module, torch.Tensor], None]) -> Callable[[], None]:
        def run() -> None:
            with WAYS[way]():
                step(network, images)

        return run

    found: dict[str, Any] = {}
    for what, step in (("training", learns), ("inference", looks)):
        times = take_turns({way: turn(way, step) for way in WAYS}, [network], 0, rounds)
        ratios = [fourier / usual for fourier, usual in zip(times["fourier"], times["usual"], strict=True)]
        found[what] = {
            "ratio": round(statistics.median(ratios), 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
        }
    return {**found, "apart": float(max(apart))}


def _outputs_and_gradients(network: nn.Module, images: torch.Tensor, way: str) -> list[torch.Tensor]:
    with WAYS[way]():
        outputs = network(images)
        return [outputs.detach(), *torch.autograd.grad(outputs.square().mean(), [*network.parameters()])]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7)
    rounds = options.parse_args().rounds
    torch.set_num_threads(1)
    networks = {}
    for label, (name, arguments) in NETWORKS.items():
        networks[label] = measure(name, arguments, BATCH, SIDE, rounds)
        print(label, networks[label], flush=True)
    report = {"what": "time with / without, 56×56, batch 128", **record(), "rounds": rounds, "networks": networks}
    path = ROOT / "benchmarks" / "results" / "fourier_cost.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
