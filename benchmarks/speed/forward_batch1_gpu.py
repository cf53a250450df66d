"""What one image costs on a GPU: wsms_X beside X at batch 1, eager, in a CUDA graph, with a stream per stage, compiled.

    python -m benchmarks.speed.forward_batch1_gpu --seconds 120

At batch 1 a GPU waits for the next kernel to be launched. A CUDA graph takes the launches away, and stages that run
side by side, on streams of their own, fill what one stage leaves idle. Weights and images are bfloat16. Forms take
turns; a figure is the median of the rounds. Compiling takes longest and comes last, as far as the seconds go.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.environment import ROOT, record
from benchmarks.common.sweep import write_json
from benchmarks.speed.forward import MODELS
from benchmarks.speed.forward_networks import SIDE, build_forms, layout_of, multiplications, seconds_a_call
from timm_wsms import cli_errors, parallel_stages
from timm_wsms.errors import UserError

Call = Callable[[], Any]


def eager(network: nn.Module, images: torch.Tensor) -> Call:
    def step() -> torch.Tensor:
        with torch.no_grad():
            return network(images)

    return step


def recorded(network: nn.Module, images: torch.Tensor) -> Call:
    """A call that replays a CUDA graph of the forward pass; on a CPU the pass itself."""
    step = eager(network, images)
    if not images.is_cuda:
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(name: str, compiled: bool, device: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of each way, and the ratio of wsms to the backbone in the same way."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    networks = build_forms(name, training=False, device=device)
    arithmetic = multiplications(networks["wsms"]) / multiplications(networks["backbone"])
    images = torch.randn(1, 3, SIDE, SIDE, device=device, dtype=torch.bfloat16).to(memory_format=layout_of(name))
    backbone, wsms = (networks[form].to(torch.bfloat16) for form in ("backbone", "wsms"))
    ways: dict[str, Call] = {}
    if compiled:
        ways = {
            f"{form}, compiled": eager(torch.compile(network, dynamic=False), images)
            for form, network in (("backbone", backbone), ("wsms", wsms))
        }
    else:
        beside = parallel_stages(wsms)
        with torch.no_grad():
            torch.testing.assert_close(beside(images), wsms(images), rtol=0.02, atol=0.02)
        ways = {"backbone, eager": eager(backbone, images), "wsms, eager": eager(wsms, images)}
        ways |= {"backbone, graph": recorded(backbone, images), "wsms, graph": recorded(wsms, images)}
        ways["wsms, graph with a stream per stage"] = recorded(beside, images)
    for step in ways.values():
        seconds_a_call(step, 2)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds):
        for way in [*ways][:: 1 if turn % 2 == 0 else -1]:
            times[way].append(seconds_a_call(ways[way], 50 if images.is_cuda else 1))
    ms = {way: round(1000 * statistics.median(found), 4) for way, found in times.items()}
    ratios = {way: round(ms[way] / ms[f"backbone, {_kind(way)}"], 3) for way in ms if way.startswith("wsms")}
    return {"ms": ms, "ratio": ratios, "multiplications": round(arithmetic, 3)}


def _kind(way: str) -> str:
    """`wsms, graph with a stream per stage` → `graph`."""
    return way.split(", ")[1].split()[0]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seconds", type=float, default=120.0, help="nothing is begun after that")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/forward_batch1_gpu.json")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU; --device cpu tries the command without one")
    until = time.perf_counter() + options.seconds
    what = "one image, 224×224, bfloat16: milliseconds, and ratios of wsms_X to X in the same way"
    report: dict[str, Any] = {"what": what, **record(), "backbones": {}}
    if options.out.exists():
        report["backbones"] = json.loads(options.out.read_text(encoding="utf-8"))["backbones"]
    for compiled in (False, True):
        for name in options.models:
            kind = "compiled" if compiled else "eager and graphs"
            if kind in report["backbones"].get(name, {}) or time.perf_counter() > until:
                continue
            found = measure(name, compiled, options.device, options.rounds)
            report["backbones"].setdefault(name, {})[kind] = found
            print(name, found, flush=True)
            write_json(options.out, report)


if __name__ == "__main__":
    sys.exit(cli_errors.run(main))
