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
from timm.utils import ModelEmaV3
from torch import nn

from hub import card
from timm_wsms import evaluation
from timm_wsms.data import Loader, Split, data_config, load_splits, make_loader
from timm_wsms.errors import UserError
from timm_wsms.training import checkpoint, faults
from timm_wsms.training.build import build, build_accelerator, build_optimizer, check_input, check_name
from timm_wsms.training.epoch import InFloat32, micro_batch_size, train_epoch
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings, check_same_run, dump, parse, plan, portable

CARD = Path(__file__).parent / "MODEL_CARD.md"


@dataclass
class Run:
    """One model to train: the recipe's `baseline` or its `model`."""

    settings: Settings
    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    data_config: dict
    train_loader: Loader
    test_loader: Loader

    @property
    def output(self) -> Path:
        return Path(self.settings.output)


def main(argv: list[str] | None = None) -> None:
    # 1. Settings, data and networks. Whatever can be refused is refused here, before anything is written.
    settings = parse(argv)
    checkpoint.check_output(Path(settings.output), settings.resume)
    for one in plan(settings):
        check_name(one.model)
    accelerator = build_accelerator(settings)
    with accelerator.main_process_first():  # the others then find the data in the cache
        splits = load_splits(settings.data, settings.seed)
    runs = [prepare(one, splits, accelerator) for one in plan(settings)]
    accelerator.wait_for_everyone()

    # 2. Training, one model after the other.
    if accelerator.is_main_process:
        for run in runs:
            run.output.mkdir(parents=True, exist_ok=True)
            (run.output / "settings.yaml").write_text(dump(run.settings), encoding="utf-8")
    rows: list[evaluation.Row] = []
    for run in runs:
        where = f"{accelerator.num_processes} × {accelerator.device.type}"
        accelerator.print(
            f"\n{run.settings.model}: {evaluation.parameters(run.network) / 1e6:.3f} M parameters, {where}"
        )
        # An accelerator for each, since it holds a gradient scaler with a state of its own.
        rows.append(train(run, rows, build_accelerator(settings)))

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


def prepare(settings: Settings, splits: tuple[Split, Split], accelerator: Accelerator) -> Run:
    """Builds all that a run needs, and checks that it fits together."""
    if checkpoint.newest(Path(settings.output)):
        check_same_run(settings, Path(settings.output) / "settings.yaml")
    train_split, test_split = splits
    set_seed(settings.seed)
    network = build(settings.model, settings.model_kwargs, len(train_split.class_names))
    config = data_config(network, settings.data)
    check_input(network, settings.model, config["input_size"], len(train_split.class_names))
    share = {
        "batch_size": micro_batch_size(settings, accelerator.num_processes),
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
    }
    train_loader = make_loader(train_split, settings.data, config, train=True, seed=settings.seed, **share)
    test_loader = make_loader(test_split, settings.data, config, train=False, **share)
    if len(train_loader) < settings.grad_accumulation:
        raise UserError(f"{len(train_split)} training images do not fill a batch; lower --batch_size")
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    network.to(accelerator.device, memory_format=memory_format)
    optimizer = build_optimizer(network, settings)
    schedule = Schedule(optimizer, settings, len(train_loader) // settings.grad_accumulation)
    return Run(settings, network, optimizer, schedule, config, train_loader, test_loader)


def train(run: Run, rows: list[evaluation.Row], accelerator: Accelerator) -> evaluation.Row:
    """Trains and evaluates one model, and writes its folder; `rows` are the results of the models before it."""
    settings, network, optimizer = run.settings, run.network, run.optimizer
    ema = ModelEmaV3(network, decay=settings.ema_decay) if settings.ema_decay is not None else None
    done, metrics = 0, []
    if newest := checkpoint.newest(run.output):
        done, extra = checkpoint.load_run_state(newest, network, optimizer, ema and ema.module)
        metrics = extra["metrics"]
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(extra["scaler"])
        accelerator.print(f"resumed after epoch {done}, from {newest}")
    # Accelerate replaces the forward of what it prepares; inside a Sequential the network keeps its own.
    model = nn.Sequential(torch.compile(network) if settings.compile else network)
    model, stepper = accelerator.prepare(model, optimizer)

    for epoch in range(done + 1, settings.epochs + 1):
        result = train_epoch(
            model, run.train_loader, stepper, run.schedule, accelerator, settings, epoch=epoch, ema=ema, network=network
        )
        metrics.append({"epoch": epoch, **dataclasses.asdict(result)})
        line = f"epoch {epoch}/{settings.epochs}  loss {result.train_loss:.4f}  {result.images_per_second:.0f} images/s"
        if epoch % settings.eval_every == 0 and epoch < settings.epochs:
            metrics[-1] |= evaluate(ema.module if ema else model, run.test_loader, accelerator)[0]
            line += f"  test {metrics[-1]['test_top1']:.2f} %"
        accelerator.print(line)
        if accelerator.is_main_process:
            write_metrics(run.output / "metrics.jsonl", metrics)
            if epoch % settings.checkpoint_every == 0 or epoch == settings.epochs:
                extra = {"metrics": metrics, "scaler": accelerator.scaler and accelerator.scaler.state_dict()}
                checkpoint.save_run_state(
                    run.output / "checkpoints", epoch, network, optimizer, ema and ema.module, extra
                )
    return finish(run, ema.module if ema else network, metrics, rows, accelerator)


def finish(
    run: Run, final: nn.Module, metrics: list[dict], rows: list[evaluation.Row], accelerator: Accelerator
) -> evaluation.Row:
    """Evaluates the model in float32, as its folder will hold it, and writes the folder."""
    figures, by_size = evaluate(InFloat32(final), run.test_loader, accelerator)
    metrics[-1] |= {**figures, "by_size": by_size} if by_size else figures
    row = evaluation.Row(
        run.settings.model,
        evaluation.parameters(final),
        evaluation.multiplications(final, run.data_config["input_size"]),
        figures["test_top1"],
        by_size,
    )
    if accelerator.is_main_process:
        write_metrics(run.output / "metrics.jsonl", metrics)
        write_model_folder(run, final, metrics, [*rows, row])
    for loader in (run.train_loader, run.test_loader):
        met = set().union(*gather_object([loader.left_out]))  # epoch by epoch an image comes to another process
        if skipped := loader.split.skipped + len(met):
            accelerator.print(f"{skipped} images of split {loader.split.name} left out, which cannot be decoded")
    accelerator.print(f"{row.model}: {row.accuracy:.2f} % of {len(run.test_loader.split)} test images")
    accelerator.wait_for_everyone()
    return row


def evaluate(model: nn.Module, loader: Loader, accelerator: Accelerator) -> tuple[dict[str, float], dict[int, float]]:
    """Top-1 and top-5 accuracy, and top-1 for each object size where sizes are known, in percent."""
    split = loader.split
    found = evaluation.predict(model, loader, accelerator, len(split), progress=True)
    by_size = {} if split.object_sizes is None else evaluation.accuracy_by_size(found, split.object_sizes)
    return {"test_top1": evaluation.top1(found), "test_top5": evaluation.top5(found)}, by_size


def write_metrics(path: Path, metrics: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")


def write_model_folder(run: Run, final: nn.Module, metrics: list[dict], rows: list[evaluation.Row]) -> None:
    """Writes `<output>/model`, which holds all that is needed to use the model and to know where it comes from."""
    example = next(iter(run.test_loader)).images[:2]
    with checkpoint.written_beside(run.output / "model") as folder:
        checkpoint.save_model_folder(final, folder, run.data_config, run.test_loader.split.class_names, example)
        (folder / "settings.yaml").write_text(dump(portable(run.settings)), encoding="utf-8")
        write_metrics(folder / "metrics.jsonl", metrics)
        evaluation.plot_curves(metrics, folder / "curves.png", title=run.settings.model)
        card.fill(
            CARD,
            folder,
            parameters=rows[-1].parameters,
            multiplications=rows[-1].multiplications,
            top1=metrics[-1]["test_top1"],
            top5=metrics[-1]["test_top5"],
            table=evaluation.markdown_table(rows),
            baseline=rows[0].model if len(rows) > 1 else None,
            repo_id=None,
            sizes_known=bool(rows[-1].by_size),
        )


if __name__ == "__main__":
    sys.exit(faults.run(main))
