"""What makes a WSMS network of the MNIST-scale CNN better: variants that differ in one thing each, trained alike.

    python -m benchmarks.mnist_scale.variants --source ../shared/data/mnist --seeds 0 1

Every run is recipes/mnist_scale.yaml at 28×28, a seed a realization of the data. But for the plain network and the
paper's form, the stages are whole networks that share their weights (`fusion="mean"`). What is varied is the pyramid,
how the stages' answers become one, and what they are trained by. Finished runs are not repeated.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from torch import nn

from benchmarks.common.environment import ROOT
from benchmarks.common.sweep import PLAIN, Form, Record, Run, choose, collect_gains, parser, run_all
from benchmarks.mnist_scale import data as mnist_scale_data
from benchmarks.mnist_scale.train import RECIPE
from timm_wsms import evaluation
from timm_wsms.data import Split, data_config, load_splits, make_loader
from timm_wsms.network.base import MultiStageNet
from timm_wsms.training.builders import build, build_accelerator, build_optimizer
from timm_wsms.training.checkpoint_manager import CheckpointManager
from timm_wsms.training.distill import Task
from timm_wsms.training.fault_tolerance.step_sync import StepSync
from timm_wsms.training.loss import build_loss
from timm_wsms.training.run import Run as TrainingRun
from timm_wsms.training.run_state import RunState
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings, parse
from timm_wsms.training.trainer import Trainer
from timm_wsms.utils import InFloat32
from train_accelerate import train_epoch

WHAT = "top-1 in % on MNIST-scale at 28×28; gains are taken seed by seed"
FEWER = [31, 61, 92]  # channels with which the paper's integration layer fits into 0.5 M parameters
REALIZATIONS = ROOT / "outputs" / "mnist_scale" / "data"


@dataclass(frozen=True)
class Variant:
    """A network of whole stages, and what it is trained by.

    Attributes:
        base: The variant that it differs from in one thing.
        pyramid: Factors of the stages' images; 1 alone is the plain network.
        by_maximum: Smaller images are made by 2×2 maximum, not by averaging.
        combine: What becomes of the stages' answers over the stages. "attention": their mean, weighted by the softmax
            of a learned score of each stage's hidden layer.
        of: What is combined: logits, or the hidden layer's units, which the classifier then takes.
        drop: Probability with which each stage is left out for an image in training (all of them never).
        each: Weight of the mean label loss of the single stages, beside that of the combination.
    """

    base: str = "mean"
    pyramid: tuple[float, ...] = (1, 0.7, 0.5)
    by_maximum: bool = False
    combine: Literal["mean", "maximum", "log-sum-exp", "attention"] = "mean"
    of: Literal["logits", "features"] = "logits"
    drop: float = 0.0
    each: float = 0.0


VARIANTS: dict[str, Variant | None] = {
    PLAIN: Variant(PLAIN, (1,)),
    "concat": None,  # the paper's form, of stages that are cut
    "mean": Variant(PLAIN),
    "mean of features": Variant(of="features"),
    "maximum": Variant(combine="maximum"),
    "maximum of features": Variant(combine="maximum", of="features"),
    "log-sum-exp": Variant(combine="log-sum-exp"),
    "attention": Variant(combine="attention"),
    "stage dropout": Variant(drop=0.3),
    "loss of each stage": Variant(each=1.0),
    "1 0.5": Variant(pyramid=(1, 0.5)),
    "1 0.5, halved by maximum": Variant("1 0.5", pyramid=(1, 0.5), by_maximum=True),
    "1.4 1 0.7": Variant(pyramid=(1.4, 1, 0.7)),
    "1.4 1 0.7, loss of each stage": Variant("1.4 1 0.7", pyramid=(1.4, 1, 0.7), each=1.0),
    "2 1": Variant(pyramid=(2, 1)),
    "2 1.4 1 0.7": Variant(pyramid=(2, 1.4, 1, 0.7)),
}


class Combined(nn.Module):
    """Whole stages whose answers become one by a variant's rule.

    Args:
        network: With `fusion="mean"`.
        variant: Its rule.
    """

    def __init__(self, network: MultiStageNet, variant: Variant):
        super().__init__()
        self.network, self.variant = network, variant
        self.score = nn.Linear(network.head_hidden_size, 1, bias=False)
        nn.init.zeros_(self.score.weight)  # it starts as the mean
        self.score.requires_grad_(variant.combine == "attention")
        if variant.by_maximum:
            network.pyramid = lambda image: [image, *(F.max_pool2d(image, 2) for _ in network.stages)]  # type: ignore[method-assign]

    def get_classifier(self) -> nn.Module:
        """For the trainer, which asks every network."""
        return self.network.get_classifier()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) → logits (B, classes); in training (1 + S, B, classes), the combination's and each stage's."""
        parts = zip(self.network.backbones(), self.network.stage_features(x), strict=True)
        hidden = torch.stack([part.forward_head(features, pre_logits=True) for part, features in parts])
        logits = self.network.get_classifier()(hidden)
        whole = self.combine(hidden, logits)
        return torch.cat([whole[None], logits]) if self.training else whole

    def combine(self, hidden: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Units (S, B, n) and logits (S, B, classes) → logits (B, classes)."""
        if self.variant.combine == "attention":
            return (self.score(hidden).softmax(0) * logits).sum(0)
        if self.variant.drop and self.training:
            return mean_of_some(logits, self.variant.drop)
        rule = {"mean": torch.mean, "maximum": torch.amax, "log-sum-exp": torch.logsumexp}[self.variant.combine]
        if self.variant.of == "logits":
            return rule(logits, 0)
        return self.network.get_classifier()(rule(hidden, 0))


def mean_of_some(x: torch.Tensor, drop: float) -> torch.Tensor:
    """(S, B, n) → (B, n), the mean over stages of which some are left out at random, for each image others."""
    draws = torch.rand(x.shape[:2], device=x.device)
    kept = (draws >= drop) | (draws == draws.amax(0))  # one at least
    return (x * kept[..., None]).sum(0) / kept.sum(0)[:, None]


def make_network(variant: Variant | None) -> nn.Module:
    """The variant's network, of at most 0.5 M parameters."""
    if variant is None:
        return build("wsms_mnist_cnn", {"channels": FEWER}, 10)
    if variant.pyramid == (1,):
        return build("mnist_cnn", {}, 10)
    return Combined(build("wsms_mnist_cnn", {"fusion": "mean", "pyramid": [*variant.pyramid]}, 10), variant)


def make_task(model: nn.Module, variant: Variant, settings: Settings) -> Task:
    """The label loss of the combination, and of each stage as the variant says."""
    loss = build_loss(settings)

    def task(images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        whole, *stages = model(images)
        each = torch.stack([loss(logits, labels) for logits in stages]).mean()
        return {"loss": loss(whole, labels) + variant.each * each}

    return task


def train(variant: Variant | None, settings: Settings, splits: tuple[Split, Split]) -> dict[str, Any]:
    """Trains one network as train_accelerate.py does, and evaluates it."""
    accelerator = build_accelerator(settings)
    set_seed(settings.seed)
    network = make_network(variant)
    timm_model = network.network if isinstance(network, Combined) else network
    config = data_config(timm_model, settings.data)
    train_loader, test_loader = (
        make_loader(split, settings.data, config, batch_size=settings.batch_size, train=training, seed=settings.seed)
        for split, training in zip(splits, (True, False), strict=True)
    )
    network.to(accelerator.device, memory_format=torch.channels_last)
    optimizer = build_optimizer(network, settings)
    schedule = Schedule(optimizer, settings, len(train_loader))
    run = TrainingRun(settings, network, optimizer, schedule, None, config, train_loader, test_loader)
    trainer, state = Trainer(run, accelerator), RunState()
    trainer.set_epoch(1)
    if isinstance(network, Combined):
        trainer.task = make_task(trainer.model, variant, settings)
    checkpoints = CheckpointManager(trainer, StepSync(accelerator))
    started = time.perf_counter()
    while state.epoch <= settings.epochs:
        state.end_epoch(train_epoch(trainer, state, checkpoints))
    seconds = time.perf_counter() - started
    found = evaluation.predict(InFloat32(network), test_loader, accelerator, len(splits[1]))
    return {
        "test_top1": evaluation.top1(found),
        "train_loss": state.metrics[-1]["train_loss"],
        "train_seconds": round(seconds),
        "parameters": evaluation.parameters(network),
    }


def train_and_measure(run: Run, options: argparse.Namespace) -> Record:
    """One run of the sweep, on its seed's realization, which is made if it is not there."""
    data = options.realizations / f"seed{run.seed}"
    if not data.exists():
        mnist_scale_data.make(options.source or "ylecun/mnist", run.seed, data)
    words = ["--data.source", str(data), "--seed", str(run.seed), *run.settings(options)]
    settings = parse(["--recipe", str(ROOT / RECIPE), *words])
    return train(VARIANTS[run.form.name], settings, load_splits(settings.data, seed=run.seed))


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__, "mnist_search", seeds=(0, 1))
    command.add_argument("--realizations", type=Path, default=REALIZATIONS, help="where the data are made")
    command.add_argument("--train_limit", type=int, default=10_000, help="images to train on")
    command.add_argument("--test_limit", type=int, default=50_000, help="images to test on")
    command.set_defaults(jobs=1, epochs=8)
    options = command.parse_args(argv)
    forms = [Form(name, "mnist_cnn" if name == PLAIN else "wsms_mnist_cnn") for name in VARIANTS]
    lengths = ("--data.train_limit", str(options.train_limit), "--data.test_limit", str(options.test_limit))
    run_all(choose(forms, {"28": lengths}, options), train_and_measure, options)
    collect_gains({name: variant.base if variant else PLAIN for name, variant in VARIANTS.items()}, WHAT, options)


if __name__ == "__main__":
    main()
