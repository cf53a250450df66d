"""Whether the small stages need running statistics of their own, in a network that starts from a backbone's weights.

    python -m benchmarks.cifar10.recalibrate --source ../shared/data/cifar10

`wsms_resnet20_cifar` with `residual=True` starts from hub/models/resnet20_cifar10 (CIFAR-10). Measured, for each seed:

(i) drift: how far the running statistics of each stage's batch norms are from those of what reaches the norms in eval
    mode, on test images, before and after `timm_wsms.recalibrate` on the training images. Stage 1's are the yardstick.
(ii) test accuracy after one short epoch of fine-tuning with all batch norms frozen (eval mode), with and without
    recalibrating first, and with batch norms in training mode; the plain backbone, fine-tuned alike, beside them.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.cifar10.stage_ablation import accuracy, test_set
from benchmarks.common.environment import ROOT, record
from timm_wsms.data import Batch, DataSettings, data_config, load_split, make_loader
from timm_wsms.network.recalibrate import recalibrate

CHECKPOINT = ROOT / "hub" / "models" / "resnet20_cifar10" / "model.safetensors"
WAYS = {  # way of fine-tuning: (name, recalibrated first, norms in training mode)
    "frozen, statistics as copied": ("wsms_resnet20_cifar", False, False),
    "frozen, recalibrated first": ("wsms_resnet20_cifar", True, False),
    "training mode, statistics as copied": ("wsms_resnet20_cifar", False, True),
    "plain backbone, frozen": ("resnet20_cifar", False, False),
    "plain backbone, training mode": ("resnet20_cifar", False, True),
}


def start(name: str, seed: int) -> Any:
    """The network as it is before fine-tuning; the seed decides what the integration's convolution starts from."""
    torch.manual_seed(seed)
    form = {"residual": True} if name.startswith("wsms_") else {}
    weights = {"file": str(CHECKPOINT), "num_classes": 10}
    return timm.create_model(name, pretrained=True, num_classes=10, pretrained_cfg_overlay=weights, **form)


def batch_norms(part: nn.Module) -> list[Any]:
    return [module for module in part.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def drift(model: Any, images: torch.Tensor) -> dict[str, dict[str, float]]:
    """Distance of running statistics from those of what reaches the norms in eval mode.

    Returns:
        For each part of the network, over the channels of all its norms: `mean`, the average of
        |running mean − mean| / standard deviation; `variance`, the average factor, at least 1, between the running
        variance and the variance (geometric mean).
    """
    parts = {"stage 1": model.backbone, **{f"stage {key}": part for key, part in model.stages.items()}}
    found = {}
    for name, part in {**parts, "integration": model.integration}.items():
        shifts, factors = [], []

        def compare(norm: Any, args: Any, shifts: Any = shifts, factors: Any = factors) -> None:
            variance, mean = torch.var_mean(args[0], (0, 2, 3))
            alive = variance > 1e-10
            shifts.append(((norm.running_mean - mean).abs() / variance.sqrt())[alive])
            factors.append((norm.running_var / variance).log().abs()[alive])

        handles = [norm.register_forward_pre_hook(compare) for norm in batch_norms(part)]
        model.eval()(images)
        for handle in handles:
            handle.remove()
        found[name] = {
            "mean": round(torch.cat(shifts).mean().item(), 4),
            "variance": round(torch.cat(factors).mean().exp().item(), 4),
        }
    return found


def fine_tune(model: nn.Module, batches: Iterable[Batch], steps: int, lr: float, train_norms: bool) -> None:
    """One epoch of momentum SGD; the learning rate falls linearly to zero."""
    model.train()
    for norm in batch_norms(model):
        norm.train(train_norms)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for batch in batches:
        F.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Drift and accuracies of one seed: it decides the order of the images, what is drawn for them, and the start."""
    part = f"train[:{options.train_images}]"
    settings = DataSettings(source=options.source, augmentation="pad_crop_flip", test_split=part)
    split = load_split(settings, seed=seed)
    model = start("wsms_resnet20_cifar", seed).eval()
    config = data_config(model, settings)
    test = test_set(options.source, model, options.test_images)

    def loader() -> Any:
        return make_loader(split, settings, config, batch_size=options.batch_size, train=True, seed=seed)

    found: dict[str, Any] = {"seed": seed, "top1_before": accuracy(model, *test)}
    found["drift_before"] = drift(model, test[0][:2000])
    found["norms"] = recalibrate(model, loader())
    found["drift_after"] = drift(model, test[0][:2000])
    print(json.dumps(found), flush=True)
    found["top1"] = {}
    for way, (name, first, train_norms) in WAYS.items():
        model = start(name, seed)
        if first:
            recalibrate(model, loader())
        fine_tune(model, loader(), len(loader()), options.lr, train_norms)
        found["top1"][way] = accuracy(model.eval(), *test)
        print(f"seed {seed}, {way}: {found['top1'][way]:.2f}", flush=True)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="uoft-cs/cifar10", help="CIFAR-10: its Hub name, or a local folder")
    parser.add_argument("--train_images", type=int, default=10_000, help="fine-tune on the first so many")
    parser.add_argument("--test_images", type=int, default=10_000, help="evaluate on the first so many")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "recalibrate.json")
    options = parser.parse_args(argv)
    rows = [measure(options, seed) for seed in options.seeds]
    report = {
        "what": "running statistics of a warm-started network's stages, and top-1 in % after one short epoch",
        **record(),
        "n": {"train_images": options.train_images, "test_images": options.test_images, "seeds": options.seeds},
        "batch_size": options.batch_size,
        "lr": options.lr,
        "results": rows,
    }
    options.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for way in WAYS:
        values = [row["top1"][way] for row in rows]
        print(f"{way:38} {statistics.mean(values):6.2f}  {values}")


if __name__ == "__main__":
    main()
