"""Trains any timm model, WSMS networks among them, on images, with Accelerate.

    accelerate launch train_accelerate.py --recipe recipes/NAME.yaml [--any.setting value]

Works on one CPU or GPU (then `python train_accelerate.py …` does too), on several, and in mixed precision. All
settings: `python train_accelerate.py --help`. On CPUs, Accelerate starts only one process; for two processes:

    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 train_accelerate.py --recipe recipes/NAME.yaml

Reads top to bottom: `main` builds the models and trains one after the other, `train` loops over epochs, `train_epoch`
over optimizer steps, and `train_step` has the arithmetic of one step. Four things make a run survive faults, and can
be skipped on first reading: `CheckpointManager` saves and resumes, `StepSync` keeps all processes in agreement after
each step, `Watchdog` ends a run that hangs, and `ShutdownSignal` notes that the run was asked to stop.
"""

import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator

from timm_wsms import cli_errors
from timm_wsms.data.progress import progress as progress_bar
from timm_wsms.files import atomic_folder
from timm_wsms.hub import card, publish, results
from timm_wsms.training import report
from timm_wsms.training.builders import build_accelerator
from timm_wsms.training.checkpoint_manager import CheckpointManager
from timm_wsms.training.dry_run import dry_run
from timm_wsms.training.environment import describe_environment
from timm_wsms.training.fault_tolerance import elastic
from timm_wsms.training.fault_tolerance.machines import process_names
from timm_wsms.training.fault_tolerance.run_lock import lock_run_folder
from timm_wsms.training.fault_tolerance.signals import ShutdownSignal
from timm_wsms.training.fault_tolerance.step_sync import StepSync
from timm_wsms.training.fault_tolerance.watchdog import Watchdog
from timm_wsms.training.run import Run, build_runs, check_settings
from timm_wsms.training.run_state import EpochResult, RunState, StepResult, not_finite
from timm_wsms.training.settings import parse
from timm_wsms.training.trackers import tracking
from timm_wsms.training.trainer import DeviceBatches, Trainer


def main(argv: list[str] | None = None) -> None:
    """Trains the models that a recipe asks for, and prints the results."""
    # 1. Settings, data and networks. Whatever can be refused is refused here, before anything is written.
    settings = parse(argv)
    output = Path(settings.output)
    if elastic.continues(output):
        settings.resume = "auto"
    check_settings(settings)
    if settings.hub.push:
        publish.check_access(settings.hub.push)
    accelerator = build_accelerator(settings)
    runs = build_runs(settings, accelerator)
    if settings.dry_run:
        for run in runs:
            accelerator.print(f"{run.settings.model}: {dry_run(Trainer(run, accelerator), train_step)}")
        return

    # 2. Training, one model after the other.
    found = report.Results()
    with lock_run_folder(output, accelerator), ShutdownSignal() as shutdown:
        elastic.mark(output, accelerator)
        for run in runs:
            accelerator.print(report.start_line(run, accelerator))
            # One accelerator per model, since it holds a gradient scaler with a state of its own.
            train(run, found, build_accelerator(run.settings), shutdown)

    # 3. Results.
    accelerator.end_training()
    if accelerator.is_main_process:
        report.print_results(found, output)
        if settings.hub.push:
            folder = output / "model"
            print(f"Publishing it; if that fails: python hub/publish.py {folder} --repo {settings.hub.push}")
            publish.publish(folder, publish.Options(settings.hub.push, settings.hub.private, settings.hub.tag))


def train(run: Run, found: report.Results, accelerator: Accelerator, shutdown: ShutdownSignal) -> None:
    """Trains one model, evaluates it and its stage 1, writes their folders, and adds their results to `found`."""
    settings = run.settings
    trainer = Trainer(run, accelerator)
    watchdog = Watchdog(accelerator, settings.hang_timeout, names=process_names(accelerator))
    sync = StepSync(accelerator, shutdown, settings.checkpoint_every_minutes, watchdog)
    checkpoints = CheckpointManager(trainer, sync)
    state = checkpoints.resume()
    trainer.set_epoch(state.epoch)
    report.write_settings(run, accelerator)  # not earlier: a run that cannot be resumed with these keeps its own

    with tracking(settings, accelerator) as track:
        if state.metrics and not state.progress.update:
            conclude_epoch(trainer, state, sync, track)  # comes after the checkpoint, so it may have been interrupted
        for epoch in range(state.epoch, settings.epochs + 1):
            if state.stopped_improving(settings.early_stop):
                accelerator.print(f"no better accuracy in {settings.early_stop} epochs: the run ends")
                break
            with watchdog:
                result = train_epoch(trainer, state, checkpoints)
            state.end_epoch(result)
            checkpoints.after_epoch(state, evaluated=report.is_evaluated(epoch, settings))
            conclude_epoch(trainer, state, sync, track)
        checkpoints.save(state)

        final, stage1 = report.evaluate_final(trainer), report.evaluate_stage1(trainer)
        state.metrics[-1] |= final.metrics | (stage1.metrics if stage1 else {})
        report.write_metrics(run.output, state, accelerator)
        rows = [*found.rows, final.row]
        if accelerator.is_main_process:
            with atomic_folder(run.output / "model") as folder:
                report.write_model_files(folder, trainer, state, rows)
                results.write(folder, rows, describe_environment(accelerator.num_processes, accelerator.device))
                card.write(folder)
            if stage1:
                report.write_backbone(run.output)
        evaluated = [final, stage1] if stage1 else [final]
        found.add(evaluated, run)
        report.print_accuracy(run, [one.row for one in evaluated], accelerator)
        accelerator.wait_for_everyone()
        track(state.metrics[-1])


def conclude_epoch(trainer: Trainer, state: RunState, sync: StepSync, track: Callable[[dict], None]) -> None:
    """Evaluates the last epoch, if that is due and not done, and reports it."""
    settings, row = trainer.settings, state.metrics[-1]
    if report.is_evaluated(row["epoch"], settings) and "test_top1" not in row:
        sync.note("")  # may take long
        row |= report.evaluate_epoch(trainer)
    track(row)
    trainer.accelerator.print(report.progress_line(row, settings))
    report.write_metrics(trainer.run.output, state, trainer.accelerator)


def train_epoch(trainer: Trainer, state: RunState, checkpoints: CheckpointManager) -> EpochResult:
    """Trains for the epoch that `state` is in, or for the rest of it.

    Raises:
        UserError: more steps than allowed had a loss or gradient that is not finite.
        Stopped: the run was asked to stop, and is saved.
    """
    settings, epoch, steps = trainer.settings, state.epoch, trainer.steps_per_epoch
    batches = trainer.start_epoch(epoch, state.progress.update)
    started, waited = time.perf_counter(), 0.0
    updates = range(state.progress.update, steps)
    what = f"epoch {epoch}/{settings.epochs}"
    for update in progress_bar(updates, what, unit="step", initial=updates.start, total=steps):
        step = train_step(trainer, batches, epoch, update, checkpoints.sync)
        if step.flags.bad and state.progress.skipped >= settings.max_skipped_steps:
            checkpoints.save(state)
            raise not_finite(step, epoch, update, "the weights before it are saved; ")
        now = time.perf_counter()
        state.progress = state.progress.after(step, now - started, batches.waited - waited)
        started, waited = now, batches.waited
        checkpoints.after_step(state, step.flags)
    return trainer.epoch_result(epoch, state.progress)


def train_step(trainer: Trainer, batches: DeviceBatches, epoch: int, update: int, sync: StepSync) -> StepResult:
    """One optimizer step: forward and backward passes of its micro-batches, then the update of weights and average.

    Args:
        trainer: model, optimizer, schedule, loss and average.
        batches: this process's micro-batches.
        epoch: counted from 1.
        update: number of the step within the epoch, counted from 0.
        sync: lets the processes agree on whether the step is sound.
    """
    accelerator, model, parts = trainer.accelerator, trainer.model, trainer.settings.grad_accumulation
    number = (epoch - 1) * trainer.steps_per_epoch + update
    where = f"step {update + 1} of epoch {epoch}"
    trainer.schedule.set(number)
    trainer.seed_step(epoch, update)
    trainer.buffers.save()
    total = torch.zeros((), device=accelerator.device)  # stays there: reading it would wait for the device
    indices = []
    for part in range(1, parts + 1):
        sync.note(f"loading images for {where}")
        index, images, labels = next(batches)
        indices.append(index)
        sync.note(f"computing {where}")
        # Processes exchange gradients once per step, with its last micro-batch.
        with accelerator.no_sync(model) if part < parts else nullcontext():
            loss = trainer.task(images, labels)["loss"] / parts
            accelerator.backward(loss)
        total += loss.detach()
    sync.note(f"waiting for the others after {where}")
    value, norm = trainer.clip_gradients(total)
    flags = sync.exchange(bad=not math.isfinite(value + norm))
    if flags.bad:
        trainer.discard_step()
    else:
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        if trainer.ema is not None:
            trainer.ema.update(trainer.network, number + 1 if trainer.ema.use_warmup else None)
    return StepResult(value, norm, torch.cat(indices), flags)


if __name__ == "__main__":
    sys.exit(cli_errors.run(main))
