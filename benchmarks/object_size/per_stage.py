"""What each stage of a network with `fusion="mean"` recognizes by itself, at every size of the object.

    python -m benchmarks.object_size.per_stage --source ../shared/data/cifar10

Of the networks that from_scratch.py has trained: top-1 of each stage's logits alone, of their mean, of the
mean of the stages' probabilities, and of the plain network on the same images; how large logits are (standard deviation
over images and classes). Where the stages share their norms, also with running statistics of each stage's own,
estimated on training images: in training each normalized by its own batches, and shared statistics are a mixture that
suits none.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import timm
import torch
from torch.optim.swa_utils import update_bn

import timm_wsms
from benchmarks.cifar10.stage_ablation import test_set
from benchmarks.common.environment import ROOT, record
from benchmarks.common.size_sweep import recognized
from benchmarks.object_size.from_scratch import SIZES
from benchmarks.object_size.untrained_average import stage_logits
from timm_wsms.data import DataSettings, data_config, load_splits, make_loader
from timm_wsms.object_scaling import rescale_object
from timm_wsms.training.settings import parse


def measure(model: timm_wsms.WsmsMeanNet, images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, Any]]:
    """A row a size: top-1 in %."""

    def top1(scores: torch.Tensor) -> float:
        return round(100 * (scores.argmax(-1) == labels).double().mean().item(), 2)

    rows = []
    for size in SIZES:
        logits = stage_logits(model, rescale_object(images, size) if size != 1 else images)
        row = {
            "size": size,
            "stages": [top1(of_one) for of_one in logits],
            "mean": top1(logits.mean(0)),
            "mean_of_probabilities": top1(logits.softmax(-1).mean(0)),
            "std_of_logits": [round(of_one.std().item(), 2) for of_one in logits],
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def with_own_statistics(
    model: timm_wsms.WsmsMeanNet, settings: DataSettings, batch_size: int = 128
) -> timm_wsms.WsmsMeanNet:
    """The same parameters in a network whose stages have running statistics of their own, those of training images."""
    form = {"fusion": "mean", "pyramid": model.factors()}
    own: Any = timm.create_model("wsms_resnet20_cifar", num_classes=10, unshared_norms="statistics", **form)
    own.load_state_dict(model.backbone.state_dict())
    split, config = load_splits(settings, seed=0)[0], data_config(own, settings)
    loader = make_loader(split, settings, config, batch_size=batch_size, train=True, seed=0)
    update_bn((batch.images for batch in loader), own.train())  # of stage 1 too, which timm_wsms.recalibrate leaves
    return own.eval()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="uoft-cs/cifar10", help="CIFAR-10: its Hub name, or a local folder")
    parser.add_argument("--test_images", type=int, default=2_000, help="evaluate on the first so many")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "unseen_sizes", help="where they were trained")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mean_stages.json")
    records = ROOT / "benchmarks" / "results" / "unseen_sizes"
    parser.add_argument("--records", type=Path, default=records, help="of the plain networks, for comparison")
    parser.add_argument("--train_images", type=int, default=10_000, help="estimate running statistics on the first")
    options = parser.parse_args(argv)
    report = {
        "what": "top-1 in % of each stage by itself and of all, against the object's size",
        **record(),
        "test_images": options.test_images,
        "train_images": options.train_images,
        "networks": {},
    }
    for folder in sorted(options.runs.glob("mean_*/model")):
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
        model.eval().to(memory_format=torch.channels_last)
        images, labels = test_set(options.source, model, options.test_images)
        print(folder.parent.name)
        report["networks"][folder.parent.name] = measure(model, images, labels)
        if model.unshared_norms == "none":
            told = ["--data.source", options.source, "--data.train_limit", str(options.train_images)]
            settings = parse(["--recipe", str(folder / "settings.yaml"), *told])
            own = with_own_statistics(model, settings.data).to(memory_format=torch.channels_last)
            name = f"{folder.parent.name}, own statistics"
            print(name)
            report["networks"][name] = measure(own, images, labels)
    for path in sorted(options.records.glob("plain_*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        top1 = 100 * recognized(found).correct[:, : options.test_images].mean(1)
        rows = [{"size": size, "plain": round(own, 2)} for size, own in zip(found["sizes"], top1.tolist(), strict=True)]
        report["networks"][path.stem] = rows
    if not report["networks"]:
        raise SystemExit(
            f"there are no networks mean_* in {options.runs}; train them by benchmarks/object_size/from_scratch.py"
        )
    options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
