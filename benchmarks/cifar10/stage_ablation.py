"""Why a WSMS network is better or not: what each stage contributes, and what happens to objects of other sizes.

    python -m benchmarks.cifar10.stage_ablation --source ../shared/data/cifar10

Reads the checkpoints that benchmarks/cifar10/resnet20.py left. For each: accuracy on CIFAR-10's test set; the same with
one stage's maps replaced by their mean over the test set (so that the stage says nothing about the image); and the same
on images whose content is made smaller (on a canvas of mean color) or larger (center crop): sizes not trained on.
`python -m timm_wsms.object_size` does the same for any model.

What stands in results/ was measured with sizes rounded to whole pixels, on a canvas of the data set's mean color; it is
each image's by now.
"""

import argparse
import json
import statistics
from pathlib import Path

import timm
import torch

import timm_wsms  # noqa: F401  registers the names
from benchmarks.cifar10.resnet20 import FORMS, ROOT, folder
from benchmarks.common.environment import record
from timm_wsms.data import DataSettings, data_config, load_split, make_loader
from timm_wsms.evaluation import rescale_object
from timm_wsms.evaluation.stages.ablation import StageMeans, logits_without_stages

FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)


def test_set(source: str | None, model: torch.nn.Module, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first n test images (n, 3, 32, 32), normalized, and their labels (n,)."""
    settings = DataSettings(source=source or "uoft-cs/cifar10", test_split=f"test[:{limit}]")
    split = load_split(settings)
    loader = make_loader(split, settings, data_config(model, settings), batch_size=500, train=False)
    batches = list(loader)
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    hits = [(model(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return 100 * sum(hits).item() / len(labels)


@torch.no_grad()
def logits_without(model: torch.nn.Module, images: torch.Tensor, batch: int = 500) -> torch.Tensor:
    """(n, C, H, W) → (1 + S, n, classes): of the whole network, and with what each stage gives replaced by its mean."""
    means = StageMeans()
    for x in images.split(batch):
        means.add(model, x)
    return torch.cat([logits_without_stages(model, x, means) for x in images.split(batch)], 1)


def without_each_stage(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Accuracy with the maps of stage 1, of stage 2 … replaced by their mean."""
    hits = (logits_without(model, images)[1:].argmax(2) == labels).sum(1)
    return [100 * count / len(labels) for count in hits.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="a local folder with CIFAR-10; without it, its Hub name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--limit", type=int, default=10_000, help="evaluate on the first so many test images")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs" / "cifar10_resnet20_short")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/cifar10_stages.json")
    options = parser.parse_args()
    rows, data = [], None
    for form in FORMS:
        for seed in options.seeds:
            model = timm.create_model(f"local-dir:{folder(options.outputs, form, seed)}/model", pretrained=True).eval()
            data = data or test_set(options.source, model, options.limit)
            row = {"form": form, "seed": seed, "top1": accuracy(model, *data)}
            row["by_size"] = {
                str(factor): accuracy(model, rescale_object(data[0], factor), data[1]) for factor in FACTORS
            }
            if hasattr(model, "integration"):
                row["without_stage"] = without_each_stage(model, *data)
                if model.integration.gamma is not None:
                    row["gamma_mean"] = model.integration.gamma.mean().item()
            rows.append(row)
            print(json.dumps(row), flush=True)
    options.results.write_text(json.dumps({**record(), "n_images": len(data[1]), "results": rows}, indent=2) + "\n")
    print("\nmean over seeds, accuracy in % at content of " + ", ".join(f"{factor} ×" for factor in FACTORS))
    for form in FORMS:
        own = [row["by_size"] for row in rows if row["form"] == form]
        print(f"{form:32}", *(f"{statistics.mean(r[str(factor)] for r in own):6.2f}" for factor in FACTORS))


if __name__ == "__main__":
    main()
