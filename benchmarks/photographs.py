"""Training on photographs: which form of the network gains how much at which size of the object, at which cost.

    python -m benchmarks.photographs_data --flowers …/flowers --imagenette …/imagenette160      first: weights, splits
    python -m benchmarks.photographs --form mean                         one run, on its validation images
    python -m benchmarks.photographs --form mean --fold 3 --tested       on its test images
    python -m benchmarks.photographs --data imagenette --form mean --lr 2e-3 --fold 1

Flowers: 4,311 photographs of 128 pixels, five classes, ImageNet weights of `tf_efficientnet_lite0`. Fold = seed: a
fifth of the images is tested, a fifth is for validation, the rest is trained on, so that every image is tested once.
Imagenette: 13,394 photographs, ten classes, `resnet10t` from random weights; its own validation images are tested, a
tenth of its training images is for validation, and a fold is a seed alone.
What is screened is compared by its area on validation images; nothing is chosen on test images. All runs are listed in
benchmarks/run_all.sh.

Several processes may run at the same time, each on a core of its own (`taskset -c 1 env OMP_NUM_THREADS=1 …`). A run
that is done, or that another process works on, is left alone; one that was interrupted goes on.

A finished run leaves benchmarks/results/photographs/<run>.json with its figures, and <run>.npz: `<split>_logits`,
float16 (stages, sizes, images, classes), `<split>_labels` and `<split>_index`. A plain network has a "stage" for each
factor of the image's size at which it was evaluated, 1 first; <run>_more.npz holds the last of them, so that a file
stays below 2 MB. Averages, cascades, calibration are computed from these. What an older record lacks is added as long
as outputs/ holds the trained network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
import yaml
from filelock import FileLock, Timeout

from benchmarks.common.environment import ROOT, record
from timm_wsms import WsmsMeanNet, WsmsNet
from timm_wsms.data import DataSettings, data_config, load_split, make_loader
from timm_wsms.evaluation.cost import multiplications
from timm_wsms.evaluation.object_size.curve import area_weights
from timm_wsms.files import atomic_write_text
from timm_wsms.object_scaling import Border, rescale_object

OUTPUTS = ROOT / "outputs" / "photographs"
RESULTS = ROOT / "benchmarks" / "results" / "photographs"
RECIPES = {"flowers": "benchmarks/photographs.yaml", "imagenette": "benchmarks/imagenette.yaml"}
SIZES = tuple(2 ** (step / 2) for step in range(-3, 4))  # of the object: 0.35 to 2.83
FACTORS = (1.0, 0.5)  # of the image, at which a plain network is evaluated
TESTED_FACTORS = (1.0, 0.5, 0.5**0.5)  # on the test images
LARGER = (2**0.5,)
MORE_FACTORS = {"one size per batch": (0.6, 0.84, *LARGER)}  # after `TESTED_FACTORS`; of other forms `LARGER`

REGIMES = {
    "narrow": ("--data.timm.scale", "[0.8, 1.0]"),
    "default": (),  # timm's random-resized crop
    "jitter": ("--data.scale_jitter", "[0.5, 2]"),
    "20 epochs": (),  # with timm's random-resized crop
}
EPOCHS = {"flowers": 4, "imagenette": 5, "20 epochs": 20}  # of the data, or of a regime that has its own
WSMS = "wsms_tf_efficientnet_lite0"
MEAN = ("--model_kwargs.fusion", "mean", "--model_kwargs.unshared_norms", "statistics", "--stage_loss", "1")
TWO = (*MEAN, "--model_kwargs.pyramid", "[1, 0.5]")
DISTILLED = ("--stage_distill", "1", "--stage_distill_temperature", "2")


@dataclass(frozen=True)
class Form:
    """A network, the side of its image in pixels, further settings of its training, and what it starts from."""

    model: str
    side: int
    words: tuple[str, ...] = ()
    weights: str | None = "lite0"
    longer: float = 1.0  # its epochs, relative to those of the other forms


FLOWERS = {
    "plain": Form("tf_efficientnet_lite0", 128),
    "plain, trained again": Form("tf_efficientnet_lite0", 128),  # the first networks were not kept
    "plain, larger image": Form("tf_efficientnet_lite0", 136),  # 1.23 times the multiplications of "mean"
    "plain at 112": Form("tf_efficientnet_lite0", 112),  # those of stage 1 of "mean" alone
    "plain at 112, trained again": Form("tf_efficientnet_lite0", 112),  # how much two trainings of one seed differ
    "plain at 96": Form("tf_efficientnet_lite0", 96),  # what the cascade spends on average
    "plain at 80": Form("tf_efficientnet_lite0", 80),
    "plain at 64": Form("tf_efficientnet_lite0", 64),
    "plain longer": Form("tf_efficientnet_lite0", 128, longer=1.25),  # as long as "mean at 128" trains
    "lite1": Form("tf_efficientnet_lite1", 128, weights="lite1"),
    "one size per batch": Form("tf_efficientnet_lite0", 128, ("--data.train_sizes", "[96, 128, 160]")),
    "concat": Form(WSMS, 112),
    "mean": Form(WSMS, 112, TWO),
    "mean at 128": Form(WSMS, 128, TWO),  # whose stage 1 alone costs as much as "plain"
    "mean, lite1": Form("wsms_tf_efficientnet_lite1", 112, TWO, "lite1"),
    "mean, one size per batch": Form(WSMS, 112, (*TWO, "--data.train_sizes", "[84, 112, 140]")),
    "mean, distilled": Form(WSMS, 112, (*TWO, *DISTILLED)),
    "mean at 128, distilled": Form(WSMS, 128, (*TWO, *DISTILLED)),
    "mean, consistent": Form(WSMS, 112, (*TWO, "--stage_consistency", "1")),
    "mean of three": Form(WSMS, 96, (*MEAN, "--model_kwargs.pyramid", "[1, 0.71, 0.5]")),
    "mean of larger": Form(WSMS, 64, (*MEAN, "--model_kwargs.pyramid", "[1.41, 1, 0.71]")),
}
RESNET = "wsms_resnet10t"
IMAGENETTE = {
    "plain": Form("resnet10t", 128, weights=None),
    "plain, larger image": Form("resnet10t", 144, weights=None),  # 1.05 times the multiplications of "mean at 128"
    "plain at 112": Form("resnet10t", 112, weights=None),
    "plain at 96": Form("resnet10t", 96, weights=None),
    "plain at 80": Form("resnet10t", 80, weights=None),
    "plain at 64": Form("resnet10t", 64, weights=None),
    "plain longer": Form("resnet10t", 128, weights=None, longer=1.25),
    "next larger backbone": Form("resnet14t", 128, weights=None),
    "one size per batch": Form("resnet10t", 128, ("--data.train_sizes", "[96, 128, 160]"), None),
    "mean": Form(RESNET, 112, TWO, None),
    "mean at 128": Form(RESNET, 128, TWO, None),
    "mean at 128, distilled": Form(RESNET, 128, (*TWO, *DISTILLED), None),
    "mean, resnet14t": Form("wsms_resnet14t", 112, TWO, None),
}
FORMS = {"flowers": FLOWERS, "imagenette": IMAGENETTE}


@dataclass(frozen=True)
class Run:
    """A form, trained in one regime on one fold."""

    form: str
    regime: str
    lr: str
    fold: int
    tested: bool
    data: str = "flowers"

    @property
    def trained(self) -> str:
        of = () if self.data == "flowers" else (self.data,)
        parts = (*of, self.form, self.regime, f"lr{self.lr}", f"fold{self.fold}")
        return "_".join(parts).replace(",", "").replace(" ", "-")

    @property
    def name(self) -> str:
        """Of the record: that of the test images has its own."""
        return f"{self.trained}_tested" if self.tested else self.trained

    @property
    def folder(self) -> Path:
        """One trained network, whichever images it is evaluated on."""
        return OUTPUTS / "runs" / self.trained

    @property
    def source(self) -> Path:
        return OUTPUTS / "flowers" / f"fold{self.fold}" if self.data == "flowers" else OUTPUTS / self.data

    @property
    def epochs(self) -> int:
        """Of its training."""
        return round(EPOCHS.get(self.regime, EPOCHS[self.data]) * FORMS[self.data][self.form].longer)

    def settings(self) -> list[str]:
        """What the training script is told beyond the recipe."""
        form = FORMS[self.data][self.form]
        start: tuple[str, ...] = ()
        if form.weights:
            weights = OUTPUTS / "weights" / form.weights / "model.safetensors"
            start = ("--model_kwargs.pretrained_cfg_overlay", json.dumps({"file": str(weights.relative_to(ROOT))}))
        return [
            *("--model", form.model, "--data.input_size", f"[3, {form.side}, {form.side}]", "--lr", self.lr),
            *start,
            *form.words,
            *REGIMES[self.regime],
            *("--epochs", str(self.epochs), "--eval_every", str(self.epochs)),
            *("--seed", str(self.fold)),
        ]


def train(run: Run) -> None:
    """Runs the training script in a process of its own; goes on with what was interrupted."""
    if (run.folder / "model").exists():
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train_accelerate.py", "--recipe", RECIPES[run.data], *run.settings()]
    command += ["--data.source", str(run.source), "--output", str(run.folder), "--resume", "auto"]
    with open(f"{run.folder}.log", "w", encoding="utf-8") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)


def logits_at_sizes(
    model: Any,
    run: Run,
    split: str,
    factors: tuple[float, ...] = FACTORS,
    border: Border = "mean",
    sizes: tuple[float, ...] = SIZES,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs a model over a split with objects at all sizes.

    Args:
        model: In eval mode.
        run: What it comes from.
        split: "validation" or "test".
        factors: Of the image's size, for a plain network.
        border: What surrounds a smaller object.
        sizes: Of the object.

    Returns:
        logits: float16 (stages, sizes, images, classes).
        labels: int64 (images,).
        index: Place of each image in the split, int64 (images,).
    """
    settings = DataSettings(str(run.source), test_split=split, crop_pct=1.0)
    images = load_split(settings)
    config = data_config(model, settings)
    loader = make_loader(images, settings, config, batch_size=32, train=False)
    found, labels, index = [], [], []
    with torch.no_grad():
        for batch in loader:
            found.append(
                torch.stack(
                    [of_stages(model, rescale_object(batch.images, size, border), factors) for size in sizes], 1
                )
            )
            labels.append(batch.labels)
            index.append(batch.index)
    return torch.cat(found, 2).half().numpy(), torch.cat(labels).numpy(), torch.cat(index).numpy()


def factors_of(form: str) -> tuple[float, ...]:
    """Of the image's size, at which a plain network is evaluated on the test images; a record may lack the last."""
    return *TESTED_FACTORS, *MORE_FACTORS.get(form, LARGER)


def is_plain(form: str) -> bool:
    """Whether a form is a backbone by itself."""
    return not form.startswith(("mean", "concat"))


def of_stages(model: Any, images: torch.Tensor, factors: tuple[float, ...]) -> torch.Tensor:
    """(B, C, H, W) → logits (stages, B, classes); a plain network's at each factor of the image's size."""
    images = images.to(memory_format=torch.channels_last)
    if isinstance(model, WsmsMeanNet):
        return model.stage_logits(images)
    if isinstance(model, WsmsNet):
        return model(images)[None]
    sides = [round(images.shape[-1] * factor) for factor in factors]
    return torch.stack(
        [
            model(images if s == images.shape[-1] else F.interpolate(images, (s, s), mode="bilinear", antialias=True))
            for s in sides
        ]
    )


def areas(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Top-1 in percent and areas under its curve over log size, of logits (sizes, images, classes)."""
    top1 = 100 * (logits.argmax(-1) == labels).mean(1)
    one = SIZES.index(1.0)
    return {
        "top1": top1.round(2).tolist(),
        "area": round(float(area_weights(SIZES) @ top1), 2),
        "area_small": round(float(area_weights(SIZES[: one + 1]) @ top1[: one + 1]), 2),
        "area_large": round(float(area_weights(SIZES[one:]) @ top1[one:]), 2),
    }


def measure(run: Run) -> None:
    """Evaluates a trained run and writes its record."""
    model: Any = timm.create_model(f"local-dir:{run.folder / 'model'}", pretrained=True).eval()
    model.to(memory_format=torch.channels_last)
    plain = is_plain(run.form)
    split = "test" if run.tested else "validation"
    started = time.perf_counter()
    logits, labels, index = logits_at_sizes(model, run, split, factors_of(run.form) if run.tested else FACTORS)
    first, more = np.split(logits, [len(TESTED_FACTORS)])
    arrays: dict[str, Any] = {f"{split}_logits": first, f"{split}_labels": labels, f"{split}_index": index}
    each = logits.astype(np.float64)
    figures = {
        split: areas(each[0] if plain else each.mean(0), labels),
        f"{split}_stages": [areas(stage, labels) for stage in each],
    }
    epochs = [json.loads(line) for line in (run.folder / "model" / "metrics.jsonl").read_text().splitlines()]
    found = {
        **{
            "data": run.data,
            "form": run.form,
            "regime": run.regime,
            "lr": run.lr,
            "fold": run.fold,
            "settings": run.settings(),
        },
        "multiplications": multiplications(model, model.pretrained_cfg["input_size"]),
        "precision": yaml.safe_load((run.folder / "model" / "settings.yaml").read_text())["precision"],  # of training
        **{"epochs": len(epochs), "train_loss": [round(epoch["train_loss"], 4) for epoch in epochs]},
        "train_minutes": round(sum(epoch["seconds"] for epoch in epochs) / 60, 1),
        "evaluation_minutes": round((time.perf_counter() - started) / 60, 1),
        "sizes": SIZES,
        **figures,
        **record(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(RESULTS / f"{run.name}.npz", **arrays)
    if len(more):
        np.savez_compressed(more_of(RESULTS / f"{run.name}.json"), test_logits=more)
    atomic_write_text(RESULTS / f"{run.name}.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"{run.name}: {figures[split]}", flush=True)


def more_of(record: Path) -> Path:
    """The file beside a record that holds what it has after `TESTED_FACTORS`."""
    return record.with_name(f"{record.stem}_more.npz")


def add_factors(run: Run) -> None:
    """Evaluates a trained plain network at those of `factors_of` that its record of the test images lacks.

    A network that was trained again is not the one of the record, and adds nothing to it.
    """
    path, folder = RESULTS / f"{run.name}.json", run.folder / "model"
    found = json.loads(path.read_text(encoding="utf-8"))
    stored = with_more(path)
    before = stored["test_logits"]
    missing = factors_of(run.form)[len(before) :]
    if not missing and len(found["test_stages"]) == len(before):
        return
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    model.to(memory_format=torch.channels_last)
    one = SIZES.index(1.0)
    again, _, index = logits_at_sizes(model, run, "test", sizes=(1.0,), factors=(1.0,))
    if not np.array_equal(index, stored["test_index"]) or np.abs(again[0, 0] - before[0, one]).max() > 0.05:
        print(f"{run.name}: stays as it is, since the network in {folder} is another than that of the record")
        return
    logits = np.concatenate([before, logits_at_sizes(model, run, "test", missing)[0]]) if missing else before
    found["test_stages"] = [areas(stage, stored["test_labels"]) for stage in logits.astype(np.float64)]
    beside = path.with_suffix(".new.npz")
    np.savez_compressed(beside, test_logits=logits[len(TESTED_FACTORS) :])
    beside.replace(more_of(path))
    atomic_write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"{run.name}: {found['test_stages']}", flush=True)


def with_more(record: Path) -> dict[str, np.ndarray]:
    """The arrays of a record, `test_logits` with the sizes of the image in the file beside it."""
    with np.load(record.with_suffix(".npz")) as stored:
        arrays = dict(stored)
    if more_of(record).exists():
        with np.load(more_of(record)) as more:
            arrays["test_logits"] = np.concatenate([arrays["test_logits"], more["test_logits"]])
    return arrays


def train_and_measure(run: Run) -> None:
    """Leaves a run's record, unless there is one, and adds what it lacks if the trained network is at hand."""
    if not (RESULTS / f"{run.name}.json").exists():
        train(run)
        measure(run)
    elif run.tested and is_plain(run.form) and (run.folder / "model").exists():
        add_factors(run)


def alone(run: Run) -> None:
    """`train_and_measure`, unless another process works on the run."""
    (OUTPUTS / "runs").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(OUTPUTS / "runs" / f"{run.trained}.lock", timeout=0):
            train_and_measure(run)
    except Timeout:
        print(f"{run.name}: another process works on it", flush=True)
    except subprocess.CalledProcessError:
        raise SystemExit(f"{run.name}: failed, see {run.folder}.log") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=FORMS, default="flowers", help="the photographs")
    parser.add_argument("--form", choices={**IMAGENETTE, **FLOWERS}, required=True)
    parser.add_argument("--regime", choices=REGIMES, default="default", help="of training")
    parser.add_argument("--lr", default="1e-3", help="learning rate")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--tested", action="store_true", help="evaluate the test images, not the validation images")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.form not in FORMS[options.data]:
        parser.error(f"{options.data} has the forms {', '.join(FORMS[options.data])}")
    alone(Run(options.form, options.regime, options.lr, options.fold, options.tested, options.data))


if __name__ == "__main__":
    main()
