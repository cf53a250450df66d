"""What stage 1 of the recommended form is worth as a plain backbone, at the backbone's own cost, on CIFAR-10.

    python -m benchmarks.object_size.stage_one --source ../shared/data/cifar10

The networks in hub/models/ on 10,000 test images at seven sizes of the object: the plain ResNet-20, the averaging one,
and its stage 1 alone (`timm_wsms.to_backbone`). Beside them, what else costs as much as the plain network where it is
used: longer training, one image size per batch, and stage 1 trained with distillation. These are trained first, in
outputs/stage_one, 15 to 20 minutes each on a core with bf16 instructions; what was interrupted goes on. One training
run each, at size 1. Writes benchmarks/results/stage_one_cifar10.json.

    python -m benchmarks.object_size.stage_one --source ../shared/data/cifar10 --jitter

The same with scale jitter of 0.5 to 2: all five networks are trained for it. Writes stage_one_cifar10_jitter.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml

import timm_wsms
from benchmarks.cifar10.stage_ablation import test_set
from benchmarks.common.environment import ROOT, record
from benchmarks.photographs import SIZES
from benchmarks.photographs_report import areas, compared
from timm_wsms.evaluation.cost import multiplications
from timm_wsms.files import atomic_write_text
from timm_wsms.object_scaling import rescale_object

OUTPUTS = ROOT / "outputs" / "stage_one"
RESULTS = ROOT / "benchmarks" / "results"
PLAIN = "--recipe recipes/cifar10_resnet20_short.yaml --model resnet20_cifar"
AVERAGING = "--recipe recipes/cifar10_resnet20_sizes.yaml --eval_every 8"
TRAINED = {  # name of the row → what the training script is told
    "plain, trained longer": f"{PLAIN} --epochs 10 --eval_every 10",  # 1.25 times, as the averaging network's two sizes
    "plain, one size per batch": f"{PLAIN} --data.train_sizes [24,32,40] --eval_every 8",
    "stage 1 alone, with distillation": f"{AVERAGING} --stage_distill 1 --stage_distill_temperature 2",
}
KEPT = {"plain": "resnet20_cifar10", "averaging": "wsms_resnet20_sizes_cifar10"}  # in hub/models/
JITTER = "--data.scale_jitter [0.5,2]"
WITH_JITTER = {
    name: f"{words} {JITTER}"
    for name, words in {"plain": f"{PLAIN} --eval_every 8", "averaging": AVERAGING, **TRAINED}.items()
}


def load(folder: Path) -> Any:
    """A trained network, in eval mode."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def kept(name: str) -> Path:
    """The folder of a network in hub/models/."""
    return ROOT / "hub" / "models" / name


def train(output: Path, words: str, source: str) -> Path:
    """The folder of a trained network; trains it in a process of its own, unless that is done.

    Args:
        output: Of the training.
        words: What the training script is told.
        source: CIFAR-10.
    """
    if not (output / "model").exists():
        output.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "train_accelerate.py", *words.split(), "--data.source", source]
        command += ["--output", str(output), "--resume", "auto"]
        with open(f"{output}.log", "w", encoding="utf-8") as log:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    return output / "model"


@torch.inference_mode()
def hits(model: Any, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Whether each image is recognized at each size, (sizes, images)."""
    rows = []
    for size in SIZES:
        guesses = [model(rescale_object(part, size)).argmax(1) for part in images.split(500)]
        rows.append((torch.cat(guesses) == labels).numpy())
    return np.stack(rows)


def table(found: dict[str, np.ndarray], arithmetic: dict[str, float]) -> dict[str, Any]:
    """Top-1 in percent, areas, and differences from the plain network with 95 % bootstrap intervals over images."""
    rows = {}
    for name, own in found.items():
        row: dict[str, Any] = {"arithmetic": round(arithmetic[name], 3), "top1": (100 * own.mean(1)).round(2).tolist()}
        row |= {part: round(float(values.mean()), 2) for part, values in areas(own).items()}
        rows[name] = row if name == "plain" else {**row, "against plain": compared([found["plain"]], [own])}
    return rows


def lines(rows: dict[str, Any]) -> list[str]:
    """The rows of docs/results.md."""
    texts = []
    for name, row in rows.items():
        cells = [name, f"× {row['arithmetic']:.2f}", *(f"{value:.1f}" for value in row["top1"]), f"{row['area']:.2f}"]
        for part in ("area", "small", "large"):
            against = row.get("against plain")
            cells.append("{:+.2f} [{:+.2f}, {:+.2f}]".format(*against[part]) if against else "")
        texts.append(f"| {' | '.join(cells)} |".replace("-", "−"))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="uoft-cs/cifar10", help="CIFAR-10: its Hub name, or a local folder")
    parser.add_argument("--jitter", action="store_true", help="networks trained with scale jitter")
    parser.add_argument(
        "--test_images", type=int, default=10_000, help="evaluate on the first so many; fewer than all write no file"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = str(Path(options.source).resolve()) if Path(options.source).is_dir() else options.source
    outputs, words = (OUTPUTS / "jitter", WITH_JITTER) if options.jitter else (OUTPUTS, TRAINED)
    folders = {} if options.jitter else {name: kept(folder) for name, folder in KEPT.items()}
    folders |= {name: train(outputs / name.replace(",", "").replace(" ", "_"), words[name], source) for name in words}
    networks = {name: load(folder) for name, folder in folders.items()}
    ours = networks["averaging"]
    networks |= {"its stage 1 alone": timm_wsms.to_backbone(ours)}
    networks |= {name: timm_wsms.to_backbone(networks[name]) for name in words if name.startswith("stage 1")}
    counts = {name: multiplications(model, (3, 32, 32)) for name, model in networks.items()}
    settings = {name: yaml.safe_load((folder / "settings.yaml").read_text()) for name, folder in folders.items()}
    images, labels = test_set(options.source, ours, options.test_images)
    found = {name: hits(model.eval(), images, labels) for name, model in networks.items()}
    rows = table(found, {name: count / counts["plain"] for name, count in counts.items()})
    trained = {name: {key: one[key] for key in ("epochs", "precision", "compile")} for name, one in settings.items()}
    report = {"what": __doc__.splitlines()[0], **record(), "sizes": SIZES, "test_images": len(labels), "rows": rows}
    report["trained_with"] = trained
    print("\n".join(lines(rows)))
    if len(labels) < 10_000:
        return  # a trial
    path = RESULTS / f"stage_one_cifar10{'_jitter' * options.jitter}.json"
    atomic_write_text(path, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
