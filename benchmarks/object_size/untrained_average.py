"""What averaging over an image pyramid gives a trained network, without any training.

    python -m benchmarks.object_size.untrained_average --source ../shared/data/cifar10

hub/models/resnet20_cifar10, a ResNet-20 trained on CIFAR-10 at one size, plain and as `wsms_resnet20_cifar` with
`fusion="mean"` and several pyramids: accuracy on test images whose content is made smaller or larger. With the running
statistics of all stages as they were trained, and with those of stages 2 … recalibrated on training images, which is no
training either. One network holds the stages of all pyramids; its logits are averaged over those that a pyramid has.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import timm
import torch

import timm_wsms
from benchmarks.cifar10.stage_ablation import test_set
from benchmarks.common.environment import ROOT, record
from timm_wsms.data import DataSettings, data_config, load_split, make_loader
from timm_wsms.evaluation.significance import mcnemar
from timm_wsms.object_scaling import rescale_object

CHECKPOINT = ROOT / "hub" / "models" / "resnet20_cifar10" / "model.safetensors"
SIZES = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
STAGES = (1, 2, 0.7, 0.5, 0.25)
PYRAMIDS = ((1,), (1, 0.7, 0.5), (1, 0.5), (1, 0.5, 0.25), (2, 1), (2, 1, 0.5), (2, 1, 0.5, 0.25))  # (1,): plain
BATCH = 50  # small enough for the processor's cache


def build() -> timm_wsms.WsmsMeanNet:
    """The trained network at all sizes."""
    weights = {"file": str(CHECKPOINT), "num_classes": 10}
    form = {"fusion": "mean", "pyramid": list(STAGES), "num_classes": 10}
    model: Any = timm.create_model("wsms_resnet20_cifar", pretrained=True, pretrained_cfg_overlay=weights, **form)
    return model.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def stage_logits(model: timm_wsms.WsmsMeanNet, images: torch.Tensor) -> torch.Tensor:
    """Each stage's logits (S, n, 10)."""
    batches = images.to(memory_format=torch.channels_last).split(BATCH)
    return torch.cat([model.stage_logits(x) for x in batches], 1)


def measure(model: timm_wsms.WsmsMeanNet, images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, Any]]:
    """For each pyramid and size: top-1 in %, and McNemar's test against the plain network."""
    rows = []
    for size in SIZES:
        logits = stage_logits(model, rescale_object(images, size))
        plain = (logits[0].argmax(1) == labels).numpy()
        for pyramid in PYRAMIDS:
            own = (logits[[STAGES.index(factor) for factor in pyramid]].mean(0).argmax(1) == labels).numpy()
            only_this, only_plain, p = mcnemar(own, plain)
            rows.append(
                {
                    "pyramid": list(pyramid),
                    "size": size,
                    "top1": round(100 * own.mean().item(), 2),
                    "only_this": only_this,
                    "only_plain": only_plain,
                    "p": float(f"{p:.2g}"),
                }
            )
        print(size, *(row["top1"] for row in rows[-len(PYRAMIDS) :]), flush=True)
    return rows


def recalibrate(model: timm_wsms.WsmsMeanNet, source: str, train_images: int) -> None:
    settings = DataSettings(source=source, test_split=f"train[:{train_images}]")
    split = load_split(settings)
    timm_wsms.recalibrate(
        model, make_loader(split, settings, data_config(model, settings), batch_size=200, train=False)
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="uoft-cs/cifar10", help="CIFAR-10: its Hub name, or a local folder")
    parser.add_argument("--test_images", type=int, default=2_000, help="evaluate on the first so many")
    parser.add_argument("--train_images", type=int, default=2_000, help="recalibrate on the first so many")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mean_without_training.json")
    options = parser.parse_args(argv)
    model = build()
    images, labels = test_set(options.source, model, options.test_images)
    as_trained = measure(model, images, labels)
    recalibrate(model, options.source, options.train_images)
    report = {
        "what": "top-1 in % against the object's size, without training; McNemar's test against the plain network",
        **record(),
        "n": {"test_images": options.test_images, "train_images": options.train_images, "trained_networks": 1},
        "as_trained": as_trained,
        "recalibrated": measure(model, images, labels),
    }
    options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
