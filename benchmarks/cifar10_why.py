"""Why WSMS does not win on CIFAR-10: ResNet-20, plain and in WSMS forms that differ in one thing each, trained alike.

    python benchmarks/cifar10_why.py --source ../shared/data/cifar10

Every run is recipes/cifar10_resnet20_short.yaml with fewer images and epochs. With one seed all variants start from the
same backbone weights and see the same images, augmented alike, in the same order; so gains are taken seed by seed. For
each run also: accuracy with one stage's maps replaced by their mean, and γ. Runs that stand in the results file are not
repeated.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from cifar10_stages import accuracy, without_each_stage
from machine import ROOT, record
from torch import nn

from timm_wsms import evaluation
from timm_wsms.data import Loader, Split, data_config, load_splits, make_loader
from timm_wsms.training.build import build, build_accelerator, build_optimizer
from timm_wsms.training.epoch import InFloat32, train_epoch
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings, parse

WHAT = "top-1 on CIFAR-10's test set in %, after equal short trainings; gains are taken seed by seed"
Halve = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Variant:
    """A network and what is different about it.

    Attributes:
        base: the variant that it differs from in one thing.
        kwargs: of the model.
        gamma_lr: γ's peak learning rate, in units of the others'.
        halve: (B, C, H, W) → (B, C, H / 2, W / 2), how the pyramid makes the next image; None: the network's own way.
    """

    base: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    model: str = "wsms_resnet20_cifar"
    gamma_lr: float = 1.0
    halve: Halve | None = None


def halve_by_max(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 2)


def halve_by_subsampling(x: torch.Tensor) -> torch.Tensor:
    return x[..., ::2, ::2]


PAPER = {"residual": False}  # and integration_channels 128, stages 3, the image halved by 2×2 average pooling
VARIANTS = {
    "plain": Variant("plain", model="resnet20_cifar"),
    "paper": Variant("plain", PAPER),
    "residual": Variant("plain", {"residual": True}),
    "residual, learning rate of γ × 10": Variant("residual", {"residual": True}, gamma_lr=10.0),
    "integration_channels 64": Variant("paper", PAPER | {"integration_channels": 64}),
    "integration_channels 256": Variant("paper", PAPER | {"integration_channels": 256}),
    "pyramid by 2×2 maximum": Variant("paper", PAPER, halve=halve_by_max),
    "pyramid by subsampling": Variant("paper", PAPER, halve=halve_by_subsampling),
    "2 stages": Variant("paper", PAPER | {"stages": 2}),
}


def make_network(variant: Variant, num_classes: int) -> nn.Module:
    """The variant's network, its pyramid replaced where the variant has a way of its own."""
    network = build(variant.model, variant.kwargs, num_classes)
    halve = variant.halve
    if halve is not None:

        def pyramid(image: torch.Tensor) -> list[torch.Tensor]:
            images = [image]
            for _ in network.stages:
                images.append(halve(images[-1]))
            return images

        network.pyramid = pyramid
    return network


def make_optimizer(network: nn.Module, variant: Variant, settings: Settings) -> torch.optim.Optimizer:
    """The recipe's optimizer; γ in a group of its own where its learning rate is another."""
    optimizer = build_optimizer(network, settings)
    if variant.gamma_lr != 1:
        gamma = network.integration.gamma
        (rest,) = optimizer.param_groups
        rest["params"] = [parameter for parameter in rest["params"] if parameter is not gamma]
        # All else as the rest has it: timm gives weight decay by group, so the optimizer's default for it is 0.
        optimizer.add_param_group({**rest, "params": [gamma], "lr": settings.lr * variant.gamma_lr})
    return optimizer


def train(variant: Variant, settings: Settings, splits: tuple[Split, Split]) -> dict[str, Any]:
    """Train one network as train_accelerate.py does, evaluate it in float32, and ask what its stages contribute."""
    accelerator = build_accelerator(settings)
    set_seed(settings.seed)
    network = make_network(variant, len(splits[0].class_names))
    config = data_config(network, settings.data)
    train_loader, test_loader = (
        make_loader(split, settings.data, config, batch_size=settings.batch_size, train=training, seed=settings.seed)
        for split, training in zip(splits, (True, False), strict=True)
    )
    network.to(accelerator.device, memory_format=torch.channels_last)
    optimizer = make_optimizer(network, variant, settings)
    schedule = Schedule(optimizer, settings, len(train_loader))
    model, stepper = accelerator.prepare(nn.Sequential(network), optimizer)
    started = time.perf_counter()
    losses = [
        train_epoch(model, train_loader, stepper, schedule, accelerator, settings, epoch=epoch).train_loss
        for epoch in range(1, settings.epochs + 1)
    ]
    seconds = time.perf_counter() - started
    found = evaluation.predict(InFloat32(network), test_loader, accelerator, len(splits[1]))
    run = {"test_top1": evaluation.top1(found), "train_loss": losses[-1], "train_seconds": round(seconds)}
    return run | what_stages_contribute(network, test_loader)


def what_stages_contribute(network: nn.Module, loader: Loader, limit: int = 2500) -> dict[str, Any]:
    """Accuracy on the first test images, with all stages and without stage 1, 2 …; γ. Nothing for a plain network."""
    if not hasattr(network, "integration"):
        return {}
    network.eval()
    device = next(network.parameters()).device
    batches = list(loader)
    images = torch.cat([batch.images for batch in batches])[:limit].to(device)
    labels = torch.cat([batch.labels for batch in batches])[:limit].to(device)
    run: dict[str, Any] = {"all_stages": accuracy(network, images, labels)}
    run["without_stage"] = without_each_stage(network, images, labels)
    gamma = network.integration.gamma
    return run if gamma is None else run | {"gamma_mean": gamma.mean().item(), "gamma_std": gamma.std().item()}


def summarize(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each variant: accuracy's mean and standard deviation over seeds, and its gains on plain and on its base."""
    top1: dict[str, dict[int, float]] = {}  # variant → seed → accuracy
    for run in runs:
        top1.setdefault(run["variant"], {})[run["seed"]] = run["test_top1"]

    def gain(name: str, over: str) -> dict[int, float]:
        shared = sorted(top1[name].keys() & top1.get(over, {}).keys())
        return {seed: round(top1[name][seed] - top1[over][seed], 2) for seed in shared}

    return [
        {
            "variant": name,
            "n": len(top1[name]),
            "test_top1_mean": statistics.mean(top1[name].values()),
            "test_top1_std": statistics.stdev(top1[name].values()) if len(top1[name]) > 1 else None,
            "gain_on_plain": gain(name, "plain"),
            "base": variant.base,
            "gain_on_base": gain(name, variant.base),
        }
        for name, variant in VARIANTS.items()
        if name in top1
    ]


def main(argv: list[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    words = ["--data.source", options.source] if options.source else []
    words += ["--data.train_limit", str(options.train_limit), "--data.test_limit", str(options.test_limit)]
    settings = parse(["--recipe", options.recipe, *words, "--epochs", str(options.epochs)])
    lengths = {"train_images": options.train_limit, "test_images": options.test_limit, "epochs": options.epochs}
    report = json.loads(options.results.read_text()) if options.results.exists() else {**lengths, "runs": []}
    if any(report[key] != value for key, value in lengths.items()):
        raise SystemExit(f"{options.results} holds runs of other lengths; give the same ones, or another --results")
    runs = report["runs"]
    done = {(run["variant"], run["seed"]) for run in runs}
    splits = load_splits(settings.data, seed=0)
    for seed in options.seeds:
        for name in options.variants:
            if (name, seed) in done:
                continue
            variant = VARIANTS[name]
            one = dataclasses.replace(settings, model=variant.model, model_kwargs=variant.kwargs, seed=seed)
            runs.append({"variant": name, "seed": seed, **train(variant, one, splits)})
            report = {"what": WHAT, **record(), **lengths, "note": options.note, "variants": summarize(runs)}
            text = json.dumps({**report, "runs": runs}, indent=2, ensure_ascii=False)
            options.results.write_text(text + "\n", encoding="utf-8")
            print(json.dumps(runs[-1], ensure_ascii=False), flush=True)
    for row in summarize(runs):
        accuracy = f"{row['test_top1_mean']:.2f} ± {row['test_top1_std'] or 0:.2f}"
        gains = ", ".join(f"{gain:+.2f}" for gain in row["gain_on_plain"].values())
        print(f"{row['variant']:36} {accuracy} %, on plain {gains or '–'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="a local folder with CIFAR-10; without it, the recipe's Hub name")
    parser.add_argument("--recipe", default=str(ROOT / "recipes/cifar10_resnet20_short.yaml"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--train_limit", type=int, default=20_000, help="train on the first so many images")
    parser.add_argument("--test_limit", type=int, default=10_000, help="evaluate on the first so many images")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/cifar10_why.json")
    parser.add_argument("--note", default="", help="what else went on on the machine")
    return parser


if __name__ == "__main__":
    main()
