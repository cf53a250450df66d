"""What data parallelism costs: bytes that two processes exchange in a step, and images per second of two against one.

    python -m benchmarks.speed.data_parallel

Two processes under DistributedDataParallel with its default flags, as Accelerate wraps a network, over gloo on one
machine. The bytes are counted twice: by DDP's own logger, and in a communication hook and the broadcast of buffers
themselves. Claim: a WSMS network exchanges what its backbone exchanges, and its integration layer and norms besides.

For the speed, each process has one thread and trains on ready images of full size. Three sides take turns within a
run: process 0 alone while the other waits, both without exchanging anything, both with it. So the last against the
second says what the exchange costs, and the second against the first what two processes on one machine cost each other.
"""

import argparse
import json
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import timm_wsms
from benchmarks.common.environment import ROOT, record

PROCESSES = 2
SIDES = ("alone", "apart", "together")
PATIENCE = timedelta(minutes=10)


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (arguments, folder), nprocs=PROCESSES)
        models = json.loads(Path(folder, "models.json").read_text())
    report = {
        "what": "two processes, DDP over gloo on one machine: bytes exchanged in a step; images/s, medians of rounds",
        **record(),
        "threads_per_process": 1,
        "batch_size_per_process": arguments.batch_size,
        "image_size": arguments.size,
        "steps_per_round": arguments.steps,
        "models": models,
    }
    Path(arguments.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, found in models.items():
        print(f"{name}: {found['communication']['gradient_bytes'] / 1e6:.1f} MB of gradients a step")
        if "speed" in found:
            print(f"{name}: two processes {found['speed']['two_to_one']} × the images/s of one")


def process(rank: int, arguments: argparse.Namespace, folder: str) -> None:
    """What each of the two processes does; process 0 writes the result into `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", PATIENCE, world_size=PROCESSES, rank=rank)
    found = {}
    for name in arguments.models:
        loop = Loop(name, arguments.batch_size, arguments.size)
        found[name] = {"communication": loop.communication()}
        if arguments.rounds:
            found[name]["speed"] = measure(loop, arguments.rounds, arguments.steps)
    if rank == 0:
        Path(folder, "models.json").write_text(json.dumps(found))
    dist.destroy_process_group()


class Loop:
    """Steps of training on the same images, in one process or in both."""

    def __init__(self, name: str, batch_size: int, size: int):
        torch.manual_seed(0)
        self.network: Any = timm.create_model(name)
        self.ddp = DistributedDataParallel(self.network)
        # So slow that nothing is learned: a network that knows its two images has gradients so small (denormal numbers)
        # that a step takes fifty times as long.
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-9, momentum=0.9)
        self.images = torch.randn(batch_size, 3, size, size)
        self.labels = torch.zeros(batch_size, dtype=torch.int64)

    def step(self, model: nn.Module) -> None:
        F.cross_entropy(model(self.images), self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def communication(self) -> dict[str, Any]:
        """Bytes that a process contributes to each collective of a step, and what they belong to."""
        counted: dict[str, list[int]] = {"gradients": [], "buffers": []}

        def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            counted["gradients"].append(bucket.buffer().nbytes)
            return allreduce_hook(state, bucket)

        broadcast = self.ddp._distributed_broadcast_coalesced

        def counting_broadcast(tensors: list[torch.Tensor], *rest: Any) -> None:
            counted["buffers"].append(sum(tensor.nbytes for tensor in tensors))
            broadcast(tensors, *rest)

        self.ddp.register_comm_hook(None, hook)
        self.ddp._distributed_broadcast_coalesced = counting_broadcast  # type: ignore[method-assign]
        for _ in range(3):  # DDP arranges its buckets anew after the first step, and its logger tells in the third
            for each in counted.values():
                each.clear()
            self.step(self.ddp)
        logged = self.ddp._get_ddp_logging_data()
        return {
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "gradient_bytes": sum(counted["gradients"]),
            "gradient_bytes_of_each_bucket": list(counted["gradients"]),
            "buffer_bytes": sum(counted["buffers"]),
            "gradient_bytes_by_part": by_part(self.network),
            "ddp_logger": {
                key: logged[key] for key in ("backend_name", "total_parameter_size_bytes", "rebuilt_bucket_sizes")
            },
        }


def by_part(network: Any) -> dict[str, int]:
    """Bytes of gradients of a network's backbone, its integration layer, and the norms of the smaller stages."""
    if not isinstance(network, timm_wsms.WsmsNet):
        return {"backbone": _bytes(network)}
    parts = {"backbone": _bytes(network.backbone), "integration": _bytes(network.integration)}
    return {**parts, "norms of stages 2 and above": _bytes(network) - sum(parts.values())}


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def measure(loop: Loop, rounds: int, steps: int) -> dict[str, Any]:
    """Times the three sides in turns; images per second of all processes together, and the ratios of their medians."""
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            speeds[side].append(images_per_second(loop, side, steps))
    median = {side: statistics.median(each) for side, each in speeds.items()}
    return {
        **{side: {"median": round(median[side], 3), "each": [round(one, 3) for one in speeds[side]]} for side in SIDES},
        "two_to_one": round(median["together"] / median["alone"], 3),
        "together_to_apart": round(median["together"] / median["apart"], 3),
        "apart_to_alone": round(median["apart"] / median["alone"], 3),
        "rounds": rounds,
    }


def images_per_second(loop: Loop, side: str, steps: int) -> float:
    """One turn of one side, from when both processes are ready until both are done."""
    idle = side == "alone" and dist.get_rank() > 0
    dist.barrier()
    started = time.perf_counter()
    for _ in range(0 if idle else steps):
        loop.step(loop.ddp if side == "together" else loop.network)  # without DDP's forward, its hooks do nothing
    dist.barrier()
    processes = 1 if side == "alone" else PROCESSES
    return processes * steps * len(loop.images) / (time.perf_counter() - started)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet50", "wsms_resnet50"])
    parser.add_argument("--batch_size", type=int, default=2, help="images of a step in each process")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=1, help="steps of each side in a round")
    parser.add_argument("--rounds", type=int, default=5, help="0: only the bytes")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "scaling.json"))
    return parser


if __name__ == "__main__":
    main()
