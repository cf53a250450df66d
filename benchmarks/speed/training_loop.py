"""What the training script costs beyond a bare PyTorch loop: images per second of both, in one run.

    python -m benchmarks.speed.training_loop --source FOLDER_OF_CIFAR10

The script's side is its `train_epoch` with all that an epoch of train_accelerate.py does: loader and augmentation,
schedule, Accelerate, progress bar. The bare side is a forward pass, a backward pass and an update on batches that lie
ready in memory, so that the loader's time counts against the script too. Both train one and the same network, since two
copies of it, at other places in memory, differ in speed by as much as the loops do; rounds alternate, and which side
begins alternates as well. Claim: the script reaches at least 0.97 of the bare loop's speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F

from benchmarks.common.environment import ROOT, record
from timm_wsms.data import Batch, data_config, load_splits, make_loader
from timm_wsms.training.builders import build, build_optimizer
from timm_wsms.training.checkpoint_manager import CheckpointManager
from timm_wsms.training.fault_tolerance.step_sync import StepSync
from timm_wsms.training.run import Run
from timm_wsms.training.run_state import RunState
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings, parse
from timm_wsms.training.trainer import Trainer
from train_accelerate import train_epoch

TARGET = 0.97


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    limit = str(arguments.steps * arguments.batch_size)
    overrides = ["--data.source", arguments.source, "--data.train_limit", limit, "--epochs", str(arguments.rounds + 1)]
    overrides += ["--batch_size", str(arguments.batch_size), "--seed", str(arguments.seed)]
    results = {}
    for name in arguments.models:
        settings = parse(["--recipe", arguments.recipe, "--model", name, *overrides])
        results[name] = measure(settings, arguments.rounds)
        found = results[name]
        print(f"{name}: script {found['script']['median']} images/s, bare {found['bare']['median']}: {found['ratio']}")
    report = {
        "what": "images/s in training: the script's epoch, and a bare loop on ready batches; ratio of the medians",
        **record(),
        "target_ratio": TARGET,
        "batch_size": arguments.batch_size,
        "precision": settings.precision,
        "seed": arguments.seed,
        "models": results,
    }
    Path(arguments.out).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def measure(settings: Settings, rounds: int) -> dict[str, Any]:
    """Times both loops in alternating rounds of one epoch each, after a warm-up.

    Returns:
        Images per second of both (median, extremes, each round), their ratio, and what else is needed to judge them.
    """
    accelerator = Accelerator(mixed_precision=settings.precision)
    split, _ = load_splits(settings.data, settings.seed)
    set_seed(settings.seed)
    network = build(settings.model, settings.model_kwargs, len(split.class_names)).to(accelerator.device)
    config = data_config(network, settings.data)
    loader = make_loader(split, settings.data, config, batch_size=settings.batch_size, train=True, seed=settings.seed)
    batches = list(loader)
    if settings.channels_last:
        network.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(network, settings)
    bare = BareLoop(network, optimizer, settings, accelerator.device)
    schedule = Schedule(optimizer, settings, len(loader))
    script = ScriptLoop(Run(settings, network, optimizer, schedule, None, config, loader, loader), accelerator)
    script()  # warms up
    bare(batches)
    speeds: dict[str, list[float]] = {"script": [], "bare": []}
    for number in range(rounds):
        for side in ("script", "bare") if number % 2 == 0 else ("bare", "script"):
            speeds[side].append(script() if side == "script" else bare(batches))
    started = time.perf_counter()
    for _ in loader:
        pass
    summaries = {side: _summary(values) for side, values in speeds.items()}
    return {
        "ratio": round(summaries["script"]["median"] / summaries["bare"]["median"], 4),
        **summaries,
        "rounds": rounds,
        "steps_per_round": len(loader),
        "device": accelerator.device.type,
        "loader_ms_per_batch": round(1000 * (time.perf_counter() - started) / len(loader), 2),
    }


class ScriptLoop:
    """An epoch as train_accelerate.py runs it; gives images per second."""

    def __init__(self, run: Run, accelerator: Accelerator):
        self.trainer, self.state = Trainer(run, accelerator), RunState()
        self.checkpoints = CheckpointManager(self.trainer, StepSync(accelerator))

    def __call__(self) -> float:
        result = train_epoch(self.trainer, self.state, self.checkpoints)
        self.state.end_epoch(result)
        return result.images_per_second


class BareLoop:
    """The least that training has to do; gives images per second."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, settings: Settings, device: torch.device):
        self.network, self.optimizer, self.device = network, optimizer, device
        self.bf16 = settings.precision == "bf16"
        self.layout = torch.channels_last if settings.channels_last else torch.contiguous_format

    def __call__(self, batches: Sequence[Batch]) -> float:
        self.network.train()
        started = time.perf_counter()
        for _, images, labels in batches:
            images = images.to(self.device, memory_format=self.layout)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = F.cross_entropy(self.network(images), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        loss.item()  # a GPU has to have finished
        return sum(len(batch.labels) for batch in batches) / (time.perf_counter() - started)


def _summary(speeds: list[float]) -> dict[str, Any]:
    each = [float(f"{speed:.4g}") for speed in speeds]
    return {"median": statistics.median(each), "min": min(each), "max": max(each), "each": each}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet20_cifar", "wsms_resnet20_cifar"])
    parser.add_argument("--recipe", default=str(ROOT / "recipes" / "cifar10_resnet20_short.yaml"))
    parser.add_argument("--source", default="digits", help="images, as --data.source of the training script")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=50, help="steps in a round, fewer if there are fewer images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "train_overhead.json"))
    return parser


if __name__ == "__main__":
    main()
