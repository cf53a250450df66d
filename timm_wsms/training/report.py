"""What a run measures, prints and writes: accuracies, metrics.jsonl, tables, and the files of its model folder."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from timm_wsms import evaluation
from timm_wsms.data import Loader, summary
from timm_wsms.evaluation.object_size.curve import (
    SizePredictions,
    check_factors,
    compare,
    comparison_rows,
    predict_sizes,
    size_curve,
)
from timm_wsms.evaluation.object_size.plots import plot_size_curves
from timm_wsms.evaluation.object_size.table import size_table
from timm_wsms.evaluation.object_size.trained_range import trained_sizes
from timm_wsms.files import atomic_folder, atomic_write_text
from timm_wsms.hub import backbone_folder
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.network.plain import to_backbone
from timm_wsms.registry.arguments import prefix_of
from timm_wsms.training.checkpoint_folder import reference_images, run_hash, save_model_folder
from timm_wsms.training.environment import versions
from timm_wsms.training.resume_check import VERSIONS
from timm_wsms.training.run import Run
from timm_wsms.training.run_state import RunState
from timm_wsms.training.settings import Settings, dump, portable
from timm_wsms.training.trainer import Trainer
from timm_wsms.utils import InFloat32

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Results:
    """What the models that a recipe asks for have achieved so far.

    Attributes:
        rows: of the table of results, in training order; stage 1 alone comes after its network.
        sizes: predictions at each size of `eval_object_sizes`, by the model's name; empty without that setting.
        seen: smallest and largest object size in training, if known; the same for all models of a recipe.
    """

    rows: list[evaluation.Row] = field(default_factory=list)
    sizes: dict[str, SizePredictions] = field(default_factory=dict)
    seen: tuple[float, float] | None = None

    def add(self, evaluated: Sequence["Evaluated"], run: Run) -> None:
        """Adds a trained model, and its stage 1 if there is one."""
        for one in evaluated:
            self.rows.append(one.row)
            if one.sizes:  # a baseline may have the model's name, and other arguments
                name = one.row.model if one.row.model not in self.sizes else f"{one.row.model} ({len(self.rows)})"
                self.sizes[name] = one.sizes
        self.seen = trained_sizes(run.output, run.data_config["crop_pct"], run.data_config["input_size"][1])


@dataclass
class Evaluated:
    """What the evaluation of one trained model found: what it adds to the metrics, its row, and predictions by size."""

    metrics: dict[str, Any]
    row: evaluation.Row
    sizes: SizePredictions | None


def start_line(run: Run, accelerator: "Accelerator") -> str:
    """What is printed before a model is trained."""
    millions = evaluation.parameters(run.network) / 1e6
    where = f"{accelerator.num_processes} × {accelerator.device.type}"
    return f"\n{run.settings.model}: {millions:.3f} M parameters, {where}"


def write_settings(run: Run, accelerator: "Accelerator") -> None:
    """Writes settings.yaml, versions.json and data.json into the run's output folder, which is created."""
    if accelerator.is_main_process:
        run.output.mkdir(parents=True, exist_ok=True)
        atomic_write_text(run.output / "settings.yaml", dump(run.settings))
        atomic_write_text(run.output / VERSIONS, json.dumps(versions(), indent=1) + "\n")
        atomic_write_text(run.output / summary.FILE, run.data_found())


def is_evaluated(epoch: int, settings: Settings) -> bool:
    """Whether to measure the accuracy after an epoch; after the last one, `evaluate_final` does."""
    return epoch % settings.eval_every == 0 and epoch < settings.epochs


def evaluate_epoch(trainer: Trainer) -> dict[str, float]:
    """The accuracy of the average if there is one, and of the weights as they are, in the training's precision."""
    loader, accelerator = trainer.run.test_loader, trainer.accelerator
    raw, _ = evaluate(trainer.model, loader, accelerator)
    if trainer.ema is None:
        return raw
    return evaluate(trainer.final, loader, accelerator)[0] | _of_raw_weights(raw)


def evaluate_final(trainer: Trainer) -> Evaluated:
    """Evaluates the final model in float32 and uncompiled, as its folder will hold it."""
    run, final, accelerator = trainer.run, trainer.final, trainer.accelerator
    with torch.compiler.set_stance("force_eager"):
        figures, by_size = evaluate(InFloat32(final), run.test_loader, accelerator, run.output)
        raw = {} if final is run.network else evaluate(InFloat32(run.network), run.test_loader, accelerator)[0]
        sizes = evaluate_sizes(final, trainer)
        row = evaluation.Row(
            portable(run.settings).model,
            evaluation.parameters(final),
            evaluation.multiplications(final, run.data_config["input_size"]),
            figures["test_top1"],
            by_size,
            figures["test_top5"],
            run.data_config["input_size"],
            _top1(sizes),
        )
    metrics: dict[str, Any] = dict(figures)
    metrics |= {name: found for name, found in (("by_size", by_size), ("by_factor", row.by_factor)) if found}
    return Evaluated(metrics | _of_raw_weights(raw), row, sizes)


def evaluate_stage1(trainer: Trainer) -> Evaluated | None:
    """Evaluates stage 1 alone, the plain backbone, of a model that averages its stages' logits; None for others."""
    run = trainer.run
    if not isinstance(trainer.final, WsmsMeanNet):
        return None
    plain = to_backbone(trainer.final)
    figures, by_size = evaluate(InFloat32(plain), run.test_loader, trainer.accelerator)
    sizes = evaluate_sizes(plain, trainer)
    alone: dict[str, Any] = {**figures, "by_size": by_size, "by_factor": _top1(sizes)}
    row = backbone_folder.row(plain, portable(run.settings).model, 1, alone, run.data_config["input_size"])
    return Evaluated({"backbone": alone}, row, sizes)


def evaluate_sizes(model: nn.Module, trainer: Trainer) -> SizePredictions | None:
    """A model's predictions in float32 at each size of `eval_object_sizes`; None without that setting."""
    settings = trainer.settings
    if settings.eval_object_sizes is None:
        return None
    factors, border = check_factors(settings.eval_object_sizes), settings.data.scale_border
    return predict_sizes(InFloat32(model), trainer.run.test_loader, trainer.accelerator, factors, border, progress=True)


def _top1(sizes: SizePredictions | None) -> dict[float, float]:
    """Object size relative to the test image's own → top-1 in percent."""
    if sizes is None:
        return {}
    return dict(zip(sizes.factors, (100 * sizes.correct.mean(1)).tolist(), strict=True))


def evaluate(
    model: nn.Module, loader: Loader, accelerator: "Accelerator", folder: Path | None = None
) -> tuple[dict[str, float], dict[int, float]]:
    """Top-1 and top-5 accuracy, and top-1 for each object size where sizes are known, in percent.

    Args:
        model: images to logits.
        loader: this process's share of the images.
        accelerator: gives the precision and the other processes.
        folder: for the tables and plots of what each class is mistaken for; None: none are written.
    """
    split = loader.split
    found = evaluation.predict(model, loader, accelerator, len(split), progress=True)
    by_size = {} if split.object_sizes is None else evaluation.accuracy_by_size(found, split.object_sizes)
    if folder and accelerator.is_main_process:
        evaluation.write_classes(found, split.class_names, folder)
    return {"test_top1": evaluation.top1(found), "test_top5": evaluation.top5(found)}, by_size


def _of_raw_weights(figures: dict[str, float]) -> dict[str, float]:
    """Renames the figures of the weights that are not averaged, which are listed next to the average's."""
    return {name.replace("test_", "test_raw_"): value for name, value in figures.items()}


def progress_line(row: dict[str, Any], settings: Settings) -> str:
    """What is printed after an epoch."""
    line = f"epoch {row['epoch']}/{settings.epochs}  loss {row['train_loss']:.4f}"
    line += f"  {row['images_per_second']:.0f} images/s, {row['data_wait']:.0%} of the time waiting for them"
    if row["skipped"]:
        line += f"  {row['skipped']} steps left out, not finite"
    for name, label in (("test_top1", "test"), ("test_raw_top1", "without averaging")):
        line += f"  {label} {row[name]:.2f} %" if name in row else ""
    return line


def write_metrics(folder: Path, state: RunState, accelerator: "Accelerator") -> None:
    """Writes metrics.jsonl: one line of JSON per epoch."""
    if accelerator.is_main_process:
        lines = [json.dumps(row) + "\n" for row in state.metrics]
        atomic_write_text(folder / "metrics.jsonl", "".join(lines))


def write_model_files(folder: Path, trainer: Trainer, state: RunState, rows: list[evaluation.Row]) -> None:
    """Writes all of a model folder except its card and results: weights, config, settings, metrics, curves.

    Args:
        folder: usually from `atomic_folder`.
        trainer: the model's trainer.
        state: with all epochs done.
        rows: results of this model (the last) and of those trained before it.
    """
    run = trainer.run
    (folder / "settings.yaml").write_text(dump(portable(run.settings)), encoding="utf-8")
    (folder / summary.FILE).write_text(run.data_found(), encoding="utf-8")
    write_metrics(folder, state, trainer.accelerator)
    names = run.test_loader.split.class_names
    example = reference_images(run.data_config["input_size"])
    save_model_folder(trainer.final, folder, run.data_config, names, example, run=run_hash(folder))
    evaluation.plot_curves(state.metrics, folder / "curves.png", title=rows[-1].model)
    evaluation.plot_rows(rows, folder / "scale.png")


def write_backbone(output: Path) -> None:
    """Writes `<output>/model_backbone`: stage 1 of the network in `model` as a plain timm model, if timm has one."""
    network = json.loads((output / "model" / "config.json").read_text(encoding="utf-8"))["architecture"]
    if backbone_folder.in_timm(network.removeprefix(prefix_of(network) or "")):
        with atomic_folder(output / "model_backbone") as folder:
            backbone_folder.write(output / "model", folder)


def print_accuracy(run: Run, rows: list[evaluation.Row], accelerator: "Accelerator") -> None:
    """Prints the accuracy of a model and its stage 1, and how many images were left out. Every process must call it."""
    from accelerate.utils import gather_object

    for loader in (run.train_loader, run.test_loader):
        met = set().union(*gather_object([loader.left_out]))  # in each epoch an image may go to another process
        if skipped := loader.split.skipped + len(met):
            accelerator.print(f"{skipped} images of split {loader.split.name} left out, which cannot be decoded")
    measured = len(run.test_loader.split) - len(met)
    for row in rows:
        accelerator.print(f"{row.model}: {row.accuracy:.2f} % of {measured} test images")


def print_results(results: Results, output: Path) -> None:
    """Prints the table of all models, and how to load the last one; draws accuracy against object size."""
    if results.sizes:
        print_sizes(results, output)
    rows = [dataclasses.replace(row, by_factor={}) for row in results.rows]  # which the table of sizes has shown
    print("\n" + evaluation.text_table(rows))
    if path := evaluation.plot_rows(rows, output / "scale.png"):
        print("\nAccuracy against object size:", path)
    folder = output / "model"
    print(f"Checkpoint folder: {folder}")
    print(f'Load it: import timm, timm_wsms; model = timm.create_model("local-dir:{folder}", pretrained=True)')
    if (plain := output / "model_backbone").is_dir():
        print(f"Its stage 1 alone, a timm model that loads without timm_wsms: {plain}")


def print_sizes(results: Results, output: Path) -> None:
    """Prints all models' accuracy at each object size, compared with the first's; writes a picture and the figures."""
    curves = {name: size_curve(found) for name, found in results.sizes.items()}
    seen = dict.fromkeys(curves, results.seen)
    pairs = {
        pair: compare(results.sizes[pair[0]], results.sizes[pair[1]]) for pair in itertools.combinations(curves, 2)
    }
    first, *others = curves
    print(f"\nAccuracy against object size:\n{size_table(curves, seen, [pairs[first, other] for other in others])}")
    figures = {
        "models": [{"model": name, **dataclasses.asdict(curve)} for name, curve in curves.items()],
        "comparisons": comparison_rows(pairs),
        "trained_sizes": results.seen,
    }
    atomic_write_text(output / "object_sizes.json", json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    print("Picture:", plot_size_curves(curves, seen, output / "object_sizes.png"))
