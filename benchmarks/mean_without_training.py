"""What averaging over an image pyramid gives a trained network, without any training.

    python benchmarks/mean_without_training.py --source ../shared/data/cifar10

hub/models/resnet20_cifar10, a ResNet-20 trained on CIFAR-10 at one size, plain and as `wsms_resnet20_cifar` with
`fusion="mean"` and several pyramids: accuracy on test images whose content is made smaller or larger. Each also with
the running statistics of stages 2 … recalibrated on training images, which is no training either.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import timm
import torch
from cifar10_stages import test_set
from machine import ROOT, record

import timm_wsms
from timm_wsms.data import DataSettings, data_config, load_splits, make_loader
from timm_wsms.evaluation.resize import resize_object
from timm_wsms.evaluation.significance import mcnemar

CHECKPOINT = ROOT / "hub" / "models" / "resnet20_cifar10" / "model.safetensors"
SIZES = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
PYRAMIDS = ([1, 0.5], [1, 0.5, 0.25], [1, 0.7], [1.4, 1, 0.7], [2, 1, 0.5])


def build(pyramid: list[float] | None) -> Any:
    """The trained network, plain (None) or averaged over a pyramid."""
    weights = {"file": str(CHECKPOINT), "num_classes": 10}
    name, form = ("resnet20_cifar", {}) if pyramid is None else ("wsms_resnet20_cifar", {"fusion": "mean"})
    form = form if pyramid is None else {**form, "pyramid": pyramid}
    return timm.create_model(name, pretrained=True, num_classes=10, pretrained_cfg_overlay=weights, **form).eval()


@torch.no_grad()
def hits(model: Any, images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """For each size, which images (n,) are recognized."""
    found = []
    for factor in SIZES:
        batches = zip(images.split(250), labels.split(250), strict=True)
        found.append(torch.cat([model(resize_object(x, factor)).argmax(1) == y for x, y in batches]))
    return found


def compare(found: list[torch.Tensor], plain: list[torch.Tensor]) -> list[dict[str, Any]]:
    """For each size: top-1 in %, and McNemar's test against the plain network."""
    rows = []
    for factor, own, other in zip(SIZES, found, plain, strict=True):
        only_own, only_plain, p = mcnemar(own.numpy(), other.numpy())
        top1 = round(100 * own.double().mean().item(), 2)
        rows.append({"size": factor, "top1": top1, "only_this": only_own, "only_plain": only_plain, "p": p})
    return rows


def training_batches(options: argparse.Namespace, model: Any) -> Any:
    settings = DataSettings(source=options.source, train_limit=options.train_images, test_limit=1)
    split, _ = load_splits(settings, seed=0)
    return make_loader(split, settings, data_config(model, settings), batch_size=250, train=False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="uoft-cs/cifar10", help="CIFAR-10: its Hub name, or a local folder")
    parser.add_argument("--test_images", type=int, default=10_000, help="evaluate on the first so many")
    parser.add_argument("--train_images", type=int, default=2_000, help="recalibrate on the first so many")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mean_without_training.json")
    options = parser.parse_args(argv)
    model = build(None)
    images, labels = test_set(options.source, model, options.test_images)
    plain = hits(model, images, labels)
    results = [{"network": "plain", "sizes": compare(plain, plain)}]
    for pyramid in PYRAMIDS:
        model = build(pyramid)
        for recalibrated in (False, True):
            if recalibrated:
                timm_wsms.recalibrate(model, training_batches(options, model))
            rows = compare(hits(model, images, labels), plain)
            results.append({"network": "mean", "pyramid": pyramid, "recalibrated": recalibrated, "sizes": rows})
            print(pyramid, recalibrated, *(f"{row['top1']:.2f}" for row in rows), flush=True)
    report = {
        "what": "top-1 in % against the object's size, without training; McNemar's test against the plain network",
        **record(),
        "n": {"test_images": options.test_images, "train_images": options.train_images, "trained_networks": 1},
        "results": results,
    }
    options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
