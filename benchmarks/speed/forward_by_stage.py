"""Why a WSMS network's time is more, or less, than its arithmetic says: each stage by itself, beside the whole.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.forward_by_stage --models swin_tiny_patch4_window7_224 --compiled 1

Forward and backward pass at batch 16, 224×224, float32; forms in turn, medians. The small stages lack the deepest
level, so their operators are another mix, whose multiplications may cost more: the quotient of the parts is what that
of forward.py would be if nothing came on top of them. Compiled, also with a graph for each stage instead of one
for all. `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000` has glibc keep what a step has freed.
results/forward_stages.json has a line for each backbone, and keeps those of others.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.common.environment import ROOT, record
from benchmarks.speed.forward_networks import SIDE, layout_of, seconds_a_call, take_turns
from timm_wsms.evaluation.cost import multiplications
from timm_wsms.network.stages import Stage

WHOLE, BACKBONE, BY_STAGE = "wsms", "backbone", "wsms, a graph for each stage"
KEYS = ("backbone", "batch", "compiled", "allocator")


class Alone(nn.Module):
    """A stage by itself: its image → its map's means (B, C)."""

    def __init__(self, stage: Stage, like: torch.Tensor):
        super().__init__()
        self.stage, self.like = stage, like

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → (B, C)."""
        return self.stage(image, self.like).mean((2, 3))


class Pass:
    """Forward and backward pass."""

    def __init__(self, network: nn.Module, images: torch.Tensor):
        self.network, self.images = network, images

    def __call__(self) -> None:
        self.network(self.images).square().mean().backward()
        self.network.zero_grad()


def by_stage(network: Any) -> nn.Module:
    """A copy whose stages are compiled each by itself; the integration layer and the head are not."""
    network = copy.deepcopy(network)
    network.backbone.forward_features = torch.compile(network.backbone.forward_features, dynamic=False)
    for stage in network.stages.values():
        stage.compile(dynamic=False)
    return network


def measure(name: str, batch: int, compiled: bool, seconds: float, rounds: int) -> dict[str, Any]:
    """Measures one backbone; the result is a line of the file."""
    torch.manual_seed(0)
    network: Any = timm.create_model(f"wsms_{name}").train().to(memory_format=layout_of(name))
    image = torch.randn(batch, 3, SIDE, SIDE).to(memory_format=layout_of(name))
    with torch.no_grad():
        like = network.stage_maps(image)[1][0]
        pyramid = network.pyramid(image)
    alone = {f"stage {number}": Alone(stage, like) for number, stage in network.stages.items()}
    networks: dict[str, nn.Module] = {BACKBONE: network.backbone, **alone, WHOLE: network}
    images = dict(zip([BACKBONE, *alone], pyramid, strict=True)) | {WHOLE: image}
    steps: dict[str, Any] = {}
    for form, part in networks.items():
        steps[form] = Pass(torch.compile(part, dynamic=False) if compiled else part, images[form])
    if compiled:
        networks[BY_STAGE] = by_stage(network)
        steps[BY_STAGE] = Pass(networks[BY_STAGE], image)
    for step in steps.values():
        seconds_a_call(step, 1)  # compiles
    times = take_turns(steps, networks.values(), seconds, rounds)
    counted = {form: multiplications(networks[form], images[form].shape[1:]) for form in images}
    median = {form: statistics.median(each) for form, each in times.items()}
    parts = [sum(each) for each in zip(*(times[form] for form in (BACKBONE, *alone)), strict=True)]  # of every round

    def ratio(one: list[float], other: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(one, other, strict=True))

    more = counted[WHOLE] / counted[BACKBONE]
    return {
        "multiplications": counted,
        "s": {form: round(value, 4) for form, value in median.items()},
        "rounds": len(parts),
        "cost_of_a_multiplication": {
            form: round(ratio(times[form], times[BACKBONE]) * counted[BACKBONE] / counted[form], 3) for form in alone
        },
        "quotient_of_the_parts": round(ratio(parts, times[BACKBONE]) / more, 3),
        "whole_over_the_parts": round(ratio(times[WHOLE], parts), 3),
        "quotient": round(ratio(times[WHOLE], times[BACKBONE]) / more, 3),
        "quotient_by_stage": round(ratio(times[BY_STAGE], times[BACKBONE]) / more, 3) if compiled else None,
    }


def allocator() -> str:
    """Whether glibc gives large tensors back to the system after use; to get them again costs a page fault a page."""
    return "keeps its memory" if os.environ.get("MALLOC_MMAP_MAX_") == "0" else "as it is"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="backbones")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--compiled", type=int, choices=(0, 1), nargs="+", default=[0, 1])
    parser.add_argument("--seconds", type=float, default=4.0, help="how long the rounds of a line go on")
    parser.add_argument("--rounds", type=int, default=5, help="at least as many")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "forward_stages.json")
    options = parser.parse_args(argv)
    kept = json.loads(options.out.read_text(encoding="utf-8"))["lines"] if options.out.exists() else []
    for name in options.models:
        for compiled in map(bool, options.compiled):
            key = dict(zip(KEYS, (name, options.batch, compiled, allocator()), strict=True))
            line = (
                key
                | {"date": record()["date"]}
                | measure(name, options.batch, compiled, options.seconds, options.rounds)
            )
            kept = [*(other for other in kept if not key.items() <= other.items()), line]
            report = {"what": "each stage of wsms_X by itself, forward and backward", **record(), "lines": kept}
            options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(json.dumps(line))


if __name__ == "__main__":
    main()
