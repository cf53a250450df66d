"""Why WSMS does not win on CIFAR-10: ResNet-20, plain and in WSMS forms that differ in one thing each, trained alike.

    python -m benchmarks.cifar10.variants --source ../shared/data/cifar10 --train_limit 8000

Every run is recipes/cifar10_resnet20_short.yaml with fewer images and epochs. With one seed all variants start from the
same backbone weights and see the same images, augmented alike, in the same order; so gains are taken seed by seed. For
each run also: accuracy with one stage's maps replaced by their mean, and γ. Finished runs are not repeated.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from torch import nn

from benchmarks.cifar10.stage_ablation import accuracy, without_each_stage
from benchmarks.common.environment import ROOT
from benchmarks.common.sweep import PLAIN, Form, Record, Run, choose, collect_gains, parser, run_all
from timm_wsms import evaluation
from timm_wsms.data import Loader, Split, data_config, load_splits, make_loader
from timm_wsms.training.builders import build, build_accelerator, build_optimizer
from timm_wsms.training.checkpoint_manager import CheckpointManager
from timm_wsms.training.fault_tolerance.step_sync import StepSync
from timm_wsms.training.run import Run as TrainingRun
from timm_wsms.training.run_state import RunState
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings, parse
from timm_wsms.training.trainer import Trainer
from timm_wsms.utils import InFloat32
from train_accelerate import train_epoch

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
    PLAIN: Variant(PLAIN, model="resnet20_cifar"),
    "paper": Variant(PLAIN, PAPER),
    "residual": Variant(PLAIN, {"residual": True}),
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
    run = TrainingRun(settings, network, optimizer, schedule, None, config, train_loader, test_loader)
    trainer, state = Trainer(run, accelerator), RunState()
    checkpoints = CheckpointManager(trainer, StepSync(accelerator))
    started = time.perf_counter()
    while state.epoch <= settings.epochs:
        state.end_epoch(train_epoch(trainer, state, checkpoints))
    seconds = time.perf_counter() - started
    found = evaluation.predict(InFloat32(network), test_loader, accelerator, len(splits[1]))
    top1, loss = evaluation.top1(found), state.metrics[-1]["train_loss"]
    figures = {"test_top1": top1, "train_loss": loss, "train_seconds": round(seconds)}
    return figures | what_stages_contribute(network, test_loader)


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


def train_and_measure(run: Run, options: argparse.Namespace) -> Record:
    """One run of the sweep."""
    variant = VARIANTS[run.form.name]
    words = ["--data.source", options.source] if options.source else []
    settings = parse(["--recipe", options.recipe, *words, *run.settings(options)])
    splits = load_splits(settings.data, seed=0)
    changes = {"model": variant.model, "model_kwargs": variant.kwargs, "seed": run.seed}
    return train(variant, dataclasses.replace(settings, **changes), splits)


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__, "cifar10_why", seeds=(0, 1))
    command.add_argument("--recipe", default=str(ROOT / "recipes/cifar10_resnet20_short.yaml"))
    command.add_argument("--train_limit", type=int, default=20_000, help="images to train on")
    command.add_argument("--test_limit", type=int, default=10_000, help="images to test on")
    command.set_defaults(jobs=1, epochs=4)
    options = command.parse_args(argv)
    forms = [Form(name, variant.model) for name, variant in VARIANTS.items()]
    lengths = ("--data.train_limit", str(options.train_limit), "--data.test_limit", str(options.test_limit))
    run_all(choose(forms, {"short": lengths}, options), train_and_measure, options)
    collect_gains({name: variant.base for name, variant in VARIANTS.items()}, WHAT, options)


if __name__ == "__main__":
    main()
