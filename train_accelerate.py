"""Trains any timm model, WSMS networks among them, on images, with Accelerate.

    accelerate launch train_accelerate.py --recipe recipes/NAME.yaml [--any.setting value]

Works alike on one CPU or GPU (then `python train_accelerate.py …` does too), on several, and in mixed precision. All
settings: `python train_accelerate.py --help`. Accelerate starts one process only on CPUs; for two processes there:

    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 train_accelerate.py --recipe recipes/NAME.yaml
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn

from timm_wsms import cli_errors, evaluation
from timm_wsms.data import Loader, Split, data_config, load_data, make_loader
from timm_wsms.errors import UserError
from timm_wsms.files import atomic_folder, atomic_write_text
from timm_wsms.hub import card, publish, results
from timm_wsms.training import checkpoint
from timm_wsms.training.builders import (
    adapt,
    build,
    build_accelerator,
    build_optimizer,
    check_input,
    check_name,
    scale_head,
)
from timm_wsms.training.checkpoint_folder import run_hash, save_model_folder
from timm_wsms.training.checkpoint_manager import CheckpointManager, no_better
from timm_wsms.training.distill import Teacher, build_teacher
from timm_wsms.training.dry_run import dry_run
from timm_wsms.training.environment import describe_environment
from timm_wsms.training.epoch import EpochProgress, InFloat32, micro_batch_size
from timm_wsms.training.fault_tolerance import elastic
from timm_wsms.training.fault_tolerance.run_lock import lock_run_folder
from timm_wsms.training.fault_tolerance.signals import ShutdownSignal
from timm_wsms.training.fault_tolerance.step_sync import StepSync
from timm_wsms.training.fault_tolerance.watchdog import Watchdog
from timm_wsms.training.loss import build_mix
from timm_wsms.training.resume_check import check_same_run
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings, dump, parse, plan, portable
from timm_wsms.training.trackers import tracking
from timm_wsms.training.trainer import Trainer


@dataclass
class Run:
    """One model to train: the recipe's `baseline` or its `model`."""

    settings: Settings
    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    teacher: Teacher | None
    data_config: dict
    train_loader: Loader
    test_loader: Loader

    @property
    def output(self) -> Path:
        return Path(self.settings.output)


def main(argv: list[str] | None = None) -> None:
    # 1. Settings, data and networks. Whatever can be refused is refused here, before anything is written.
    settings = parse(argv)
    if elastic.continues(Path(settings.output)):
        settings.resume = "auto"
    if not settings.dry_run:
        checkpoint.check_output(Path(settings.output), settings.resume)
    for one in plan(settings):
        check_name(one.model)
    if settings.hub.push:
        publish.check_access(settings.hub.push)
    accelerator = build_accelerator(settings)
    with accelerator.main_process_first():  # the others then find the data in the cache
        splits = load_data(settings.data, settings.seed)
    runs = [prepare(one, splits, accelerator) for one in plan(settings)]
    accelerator.wait_for_everyone()
    if settings.dry_run:
        for run in runs:
            trainer = Trainer(run.network, run.optimizer, run.teacher, run.settings, accelerator)
            needs = dry_run(trainer, run.train_loader, run.test_loader, run.schedule, run.settings, accelerator)
            accelerator.print(f"{run.settings.model}: {needs}")
        return

    # 2. Training, one model after the other.
    rows: list[evaluation.Row] = []
    with lock_run_folder(Path(settings.output), accelerator), ShutdownSignal() as stop:
        elastic.mark(Path(settings.output), accelerator)
        for run in runs:
            where = f"{accelerator.num_processes} × {accelerator.device.type}"
            accelerator.print(
                f"\n{run.settings.model}: {evaluation.parameters(run.network) / 1e6:.3f} M parameters, {where}"
            )
            # An accelerator for each, since it holds a gradient scaler with a state of its own.
            rows.append(train(run, rows, build_accelerator(run.settings), stop))

    # 3. Results.
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    print("\n" + evaluation.text_table(rows))
    if any(row.by_size for row in rows):
        curves = {row.model: row.by_size for row in rows}
        print("\nAccuracy against object size:", evaluation.plot_sizes(curves, runs[-1].output / "scale.png"))
    folder = runs[-1].output / "model"
    print(f"Checkpoint folder: {folder}")
    print(f'Load it: import timm, timm_wsms; model = timm.create_model("local-dir:{folder}", pretrained=True)')
    if settings.hub.push:
        print(f"Publishing it; should that fail: python hub/publish.py {folder} --repo {settings.hub.push}")
        publish.publish(folder, publish.Options(settings.hub.push, settings.hub.private, settings.hub.tag))


def prepare(settings: Settings, splits: tuple[Split, Split], accelerator: Accelerator) -> Run:
    """Builds all that a run needs, and checks that it fits together."""
    if checkpoint.newest(Path(settings.output)):
        for change in check_same_run(settings, Path(settings.output) / "settings.yaml"):
            accelerator.print(f"resuming with {change}")
    train_split, test_split = splits
    set_seed(settings.seed)
    network = build(settings.model, settings.model_kwargs, len(train_split.class_names))
    scale_head(network, settings.head_init_scale)
    config = data_config(network, settings.data)
    check_input(network, settings.model, config["input_size"], len(train_split.class_names))
    for side in settings.data.train_sizes or ():
        size = (config["input_size"][0], side, side)
        check_input(network, settings.model, size, len(train_split.class_names), "data.train_sizes")
    share = {
        "batch_size": micro_batch_size(settings, accelerator.num_processes),
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "device": accelerator.device,
    }
    train_loader = make_loader(train_split, settings.data, config, train=True, seed=settings.seed, **share)
    test_loader = make_loader(test_split, settings.data, config, train=False, **share)
    if len(train_loader) < settings.grad_accumulation:
        raise UserError(f"{len(train_split)} training images do not fill a batch; lower --batch_size")
    build_mix(settings, len(train_split.class_names), train_loader.batch_size)  # refuses what cannot be paired
    teacher = build_teacher(settings, config, len(train_split.class_names))
    network = adapt(network, settings, accelerator.device)
    optimizer = build_optimizer(network, settings)
    schedule = Schedule(optimizer, settings, len(train_loader) // settings.grad_accumulation)
    return Run(settings, network, optimizer, schedule, teacher, config, train_loader, test_loader)


def train(run: Run, rows: list[evaluation.Row], accelerator: Accelerator, stop: ShutdownSignal) -> evaluation.Row:
    """Trains and evaluates one model, and writes its folder; `rows` are the results of the models before it."""
    settings = run.settings
    trainer = Trainer(run.network, run.optimizer, run.teacher, settings, accelerator)
    watchdog = Watchdog(accelerator, settings.hang_timeout)
    sync = StepSync(accelerator, stop, settings.checkpoint_every_minutes, watchdog)
    ema = trainer.ema and trainer.ema.module
    manager = CheckpointManager(settings, run.network, run.optimizer, ema, run.train_loader, accelerator, sync)
    done, so_far = manager.resume()
    trainer.set_epoch(done + 1)
    metrics = manager.metrics
    if accelerator.is_main_process:  # not sooner: a run that cannot be resumed with them keeps its own
        run.output.mkdir(parents=True, exist_ok=True)
        atomic_write_text(run.output / "settings.yaml", dump(settings))

    with tracking(settings, accelerator) as track:

        def conclude(row: dict) -> None:
            if to_be_measured(row["epoch"], settings) and "test_top1" not in row:
                watchdog.note("")  # takes its time
                row |= measure(trainer, run.test_loader, accelerator)
            track(row)
            accelerator.print(progress_line(row, settings))
            if accelerator.is_main_process:
                write_metrics(run.output / "metrics.jsonl", metrics)

        if metrics and not so_far.update:
            conclude(metrics[-1])  # comes after the checkpoint, so it may have been interrupted
        for epoch in range(done + 1, settings.epochs + 1):
            if no_better(metrics, settings.early_stop):
                accelerator.print(f"no better accuracy in {settings.early_stop} epochs: the run ends")
                break
            with watchdog:
                result = trainer.train_epoch(
                    *(run.train_loader, run.schedule),
                    epoch=epoch,
                    so_far=so_far,
                    sync=sync,
                    after_update=manager.in_epoch(epoch),
                )
            so_far = EpochProgress()
            metrics.append({"epoch": epoch, **dataclasses.asdict(result)})
            if epoch % settings.checkpoint_every == 0 or (settings.keep_best and to_be_measured(epoch, settings)):
                manager.save(epoch)
            conclude(metrics[-1])
        manager.save(len(metrics))
        row = finish(run, trainer.final, metrics, rows, accelerator)
        track(metrics[-1])
    return row


def to_be_measured(epoch: int, settings: Settings) -> bool:
    """Whether to measure the accuracy after an epoch; after the last one `finish` does."""
    return epoch % settings.eval_every == 0 and epoch < settings.epochs


def measure(trainer: Trainer, loader: Loader, accelerator: Accelerator) -> dict[str, float]:
    """The accuracy of the average if there is one, and of the weights as they are."""
    raw = evaluate(trainer.model, loader, accelerator)[0]
    if trainer.ema is None:
        return raw
    return evaluate(trainer.final, loader, accelerator)[0] | of_raw_weights(raw)


def of_raw_weights(figures: dict[str, float]) -> dict[str, float]:
    """Renames the figures of the weights that are not averaged, which stand beside the average's."""
    return {name.replace("test_", "test_raw_"): value for name, value in figures.items()}


def progress_line(row: dict, settings: Settings) -> str:
    """What is told of an epoch."""
    line = f"epoch {row['epoch']}/{settings.epochs}  loss {row['train_loss']:.4f}"
    line += f"  {row['images_per_second']:.0f} images/s, {row['data_wait']:.0%} of the time waiting for them"
    if row["skipped"]:
        line += f"  {row['skipped']} steps left out, not finite"
    for name, label in (("test_top1", "test"), ("test_raw_top1", "without averaging")):
        line += f"  {label} {row[name]:.2f} %" if name in row else ""
    return line


def finish(
    run: Run, final: nn.Module, metrics: list[dict], rows: list[evaluation.Row], accelerator: Accelerator
) -> evaluation.Row:
    """Evaluates the model in float32, as its folder will hold it, and writes the folder."""
    figures, by_size = evaluate(InFloat32(final), run.test_loader, accelerator, run.output)
    metrics[-1] |= {**figures, "by_size": by_size} if by_size else figures
    if final is not run.network:
        metrics[-1] |= of_raw_weights(evaluate(InFloat32(run.network), run.test_loader, accelerator)[0])
    row = evaluation.Row(
        portable(run.settings).model,
        evaluation.parameters(final),
        evaluation.multiplications(final, run.data_config["input_size"]),
        figures["test_top1"],
        by_size,
        figures["test_top5"],
    )
    if accelerator.is_main_process:
        write_metrics(run.output / "metrics.jsonl", metrics)
        write_model_folder(run, final, metrics, [*rows, row], accelerator)
    for loader in (run.train_loader, run.test_loader):
        met = set().union(*gather_object([loader.left_out]))  # epoch by epoch an image comes to another process
        if skipped := loader.split.skipped + len(met):
            accelerator.print(f"{skipped} images of split {loader.split.name} left out, which cannot be decoded")
    measured = len(run.test_loader.split) - len(met)
    accelerator.print(f"{row.model}: {row.accuracy:.2f} % of {measured} test images")
    accelerator.wait_for_everyone()
    return row


def evaluate(
    model: nn.Module, loader: Loader, accelerator: Accelerator, folder: Path | None = None
) -> tuple[dict[str, float], dict[int, float]]:
    """Top-1 and top-5 accuracy, and top-1 for each object size where sizes are known, in percent.

    Into `folder`, if given, goes what each class is taken for.
    """
    split = loader.split
    found = evaluation.predict(model, loader, accelerator, len(split), progress=True)
    by_size = {} if split.object_sizes is None else evaluation.accuracy_by_size(found, split.object_sizes)
    if folder and accelerator.is_main_process:
        evaluation.write_classes(found, split.class_names, folder)
    return {"test_top1": evaluation.top1(found), "test_top5": evaluation.top5(found)}, by_size


def write_metrics(path: Path, metrics: list[dict]) -> None:
    atomic_write_text(path, "".join(json.dumps(line) + "\n" for line in metrics))


def write_model_folder(
    run: Run, final: nn.Module, metrics: list[dict], rows: list[evaluation.Row], accelerator: Accelerator
) -> None:
    """Writes `<output>/model`, which holds all that is needed to use the model and to know where it comes from."""
    example = next(iter(run.test_loader)).images[:2]
    with atomic_folder(run.output / "model") as folder:
        (folder / "settings.yaml").write_text(dump(portable(run.settings)), encoding="utf-8")
        write_metrics(folder / "metrics.jsonl", metrics)
        results.write(folder, rows, describe_environment(accelerator.num_processes, accelerator.device))
        names = run.test_loader.split.class_names
        save_model_folder(final, folder, run.data_config, names, example, run=run_hash(folder))
        evaluation.plot_curves(metrics, folder / "curves.png", title=rows[-1].model)
        if rows[-1].by_size:
            evaluation.plot_sizes({row.model: row.by_size for row in rows}, folder / "scale.png")
        card.write(folder)


if __name__ == "__main__":
    sys.exit(cli_errors.run(main))
