"""Which digits of MNIST-scale are recognized, by their size, and what each stage has to do with it.

    python -m benchmarks.mnist_scale.by_digit_size --source ../shared/data/mnist

Of train.py's records: the error at each size of digit, for every form. Of its networks of several
stages, as far as they lie on this machine: the error with what one stage gives, a map or with `fusion="mean"` logits,
replaced by its mean over the test images, so that it says nothing about the image; each stage's logits alone; and the
plain network of the same realization.
A digit's size is the factor that it was scaled by: 1 is MNIST's own, about 20 pixels of 28.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from benchmarks.cifar10.stage_ablation import logits_without, test_set
from benchmarks.common.environment import ROOT, record
from benchmarks.common.size_sweep import recognized
from benchmarks.common.sweep import PLAIN, Run, spread
from benchmarks.mnist_scale import data as mnist_scale_data
from benchmarks.mnist_scale.train import FORMS, data
from timm_wsms import WsmsMeanNet

EDGES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BATCH = 250
SEEDS = 6  # realizations, as many as Sosnovik et al. have


def errors(right: np.ndarray, size: np.ndarray) -> dict[str, Any]:
    """Whether each of n images is recognized (n,), and its digit's size (n,) → errors in %, of all and by size."""
    place = np.searchsorted(EDGES[1:-1], size, side="right")
    by_size = [round(100 * (1 - right[place == i].mean().item()), 2) for i in range(len(EDGES) - 1)]
    return {"all": round(100 * (1 - right.mean().item()), 3), "by_size": by_size}


def of_records(folder: Path, sizes: Callable[[int], np.ndarray]) -> list[dict[str, Any]]:
    """A row a form and group: mean and standard deviation over the seeds of the errors at each size."""
    found = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        size = sizes(one["seed"])[: one["test_images"]]
        found[one["form"], one["group"]].append(errors(recognized(one).correct[0], size)["by_size"])
    return [
        {"form": form, "group": group, "n": len(rows), "errors": [spread(at) for at in zip(*rows, strict=True)]}
        for (form, group), rows in sorted(found.items())
    ]


def plain_record(run: Run, folder: Path) -> Path:
    """Where the plain network of the same realization is recorded."""
    return folder / f"{replace(run, form=FORMS[0]).name}.json"


@torch.inference_mode()
def of_stages(model: Any, images: torch.Tensor, labels: torch.Tensor, size: np.ndarray) -> dict[str, Any]:
    """Errors of a network of S stages, without each of them, and of each alone if it gives logits."""
    whole, *without = logits_without(model, images, BATCH)
    alone: Sequence[torch.Tensor] = []
    if isinstance(model, WsmsMeanNet):
        alone = [*torch.cat([model.stage_logits(x) for x in images.split(BATCH)], 1)]

    def of(logits: torch.Tensor) -> dict[str, Any]:
        return errors((logits.argmax(1) == labels).numpy(), size)

    return {"whole": of(whole), "without": [*map(of, without)], "alone": [*map(of, alone)]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="ylecun/mnist", help="MNIST: its Hub name, or a local folder")
    parser.add_argument("--test_images", type=int, default=10_000, help="look at stages with the first so many")
    parser.add_argument("--group", default="28", help="look at the stages of networks trained so")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "mnist_scale", help="where they were trained")
    parser.add_argument("--records", type=Path, default=ROOT / "benchmarks" / "results" / "mnist_scale")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mnist_sizes.json")
    options = parser.parse_args(argv)
    runs = [Run(form, options.group, (), seed) for form in FORMS if form.name != PLAIN for seed in range(SEEDS)]
    runs = [run for run in runs if run.model(options.runs).exists()]
    for run in runs:
        if not plain_record(run, options.records).exists():
            group = f"--forms {PLAIN} --groups '{run.group}' --seeds {run.seed}"
            raise SystemExit(
                f"{run.name} has no plain network beside it: run benchmarks/mnist_scale/train.py {group} first"
            )
    digits = np.array(mnist_scale_data.all_digits(options.source)["label"])

    @cache
    def sizes(seed: int) -> np.ndarray:
        """Of the test images of a realization, in their order."""
        factors, splits = mnist_scale_data.draw(digits, seed)
        return factors[splits["test"]]

    report: dict[str, Any] = {
        "what": "errors in % on MNIST-scale by the digit's size",
        **record(),
        "edges": EDGES,
        "forms": of_records(options.records, sizes),
        "test_images": options.test_images,
        "stages": [],
    }
    for run in runs:
        model: Any = timm.create_model(f"local-dir:{run.model(options.runs)}", pretrained=True)
        images, labels = test_set(str(data(options.runs, run.seed)), model, options.test_images)
        model.eval().to(memory_format=torch.channels_last)
        size = sizes(run.seed)[: len(labels)]
        found = of_stages(model, images, labels, size)
        plain = json.loads(plain_record(run, options.records).read_text(encoding="utf-8"))
        found["plain"] = errors(recognized(plain).correct[0, : len(labels)], size)
        report["stages"].append({"form": run.form.name, "group": run.group, "seed": run.seed, **found})
        print(report["stages"][-1], flush=True)
    options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
