"""Why a WSMS network takes more time than its arithmetic at batch 1, and two ways to fix that.

    python -m benchmarks.speed.forward_batch1

An operator takes some time whatever the size of its map. Stages 2 and 3 run many of the backbone's operators once more,
on maps of a quarter and a sixteenth: a large share of the operators for a small share of the arithmetic. So beside the
ratio of multiplications stands that of operators (calls of PyTorch's kernels, views left out). Two ways are tried:

- one_thread: both with one thread for the inside of operators; small maps gain nothing by two;
- side_by_side: `timm_wsms.parallel_stages`, each stage in a Python thread of its own with one thread inside of
  operators; against the backbone with all threads.

Forms take turns on the same weights, as in forward.py; a ratio is the median of the rounds' own.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common.environment import ROOT, record
from benchmarks.speed.forward import MODELS
from benchmarks.speed.forward_networks import SIDE, InferenceStep, build_forms, layout_of, multiplications, take_turns
from timm_wsms import parallel_stages


class Threads:
    """A step with so many threads inside of operators."""

    def __init__(self, step: InferenceStep, threads: int):
        self.step, self.threads = step, threads

    def __call__(self) -> None:
        torch.set_num_threads(self.threads)
        self.step()


class Operators(TorchDispatchMode):
    """Counts the operators that are called, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not func.is_view
        return func(*args, **kwargs or {})


def operators(step: InferenceStep) -> int:
    with Operators() as counter:
        step()
    return counter.number


def measure(name: str, seconds: float, rounds: int) -> dict[str, Any]:
    """Ratios of wsms_<name> to <name> at batch 1: multiplications, operators, time as it is and in the two ways."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    forms = build_forms(name, training=False)
    del forms["multi_scale"]
    images = torch.randn(1, 3, SIDE, SIDE).to(memory_format=layout_of(name))
    steps = {form: InferenceStep(network, images) for form, network in forms.items()}
    beside = InferenceStep(parallel_stages(forms["wsms"].eval()), images)
    with torch.no_grad():
        torch.testing.assert_close(beside.network(images), forms["wsms"](images))
    turns = {form: Threads(step, threads) for form, step in steps.items()}
    turns |= {f"{form}_one_thread": Threads(step, 1) for form, step in steps.items()}
    turns["side_by_side"] = Threads(beside, 1)
    times = take_turns(turns, forms.values(), seconds, rounds)
    torch.set_num_threads(threads)

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(times[one], times[other], strict=True)), 3)

    arithmetic = multiplications(forms["wsms"]) / multiplications(forms["backbone"])
    return {
        "multiplications": round(arithmetic, 3),
        "operators": round(operators(steps["wsms"]) / operators(steps["backbone"]), 3),
        "time": ratio("wsms", "backbone"),
        "time_one_thread": ratio("wsms_one_thread", "backbone_one_thread"),
        "time_side_by_side": ratio("side_by_side", "backbone"),
        "rounds": len(times["wsms"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the rounds of a backbone go on")
    parser.add_argument("--rounds", type=int, default=5, help="at least as many")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "forward_batch1.json"))
    arguments = parser.parse_args()
    report: dict[str, Any] = {"what": "ratios of wsms_X to X, inference, batch 1, eager", **record(), "backbones": {}}
    for name in arguments.models:
        report["backbones"][name] = measure(name, arguments.seconds, arguments.rounds)
        print(name, report["backbones"][name], flush=True)
        Path(arguments.out).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
