"""From settings to everything that a run needs, checked to fit together before anything is written."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from timm_wsms.data import Loader, Split, Stream, data_config, load_data, make_loader, resolve_holdout, summary
from timm_wsms.errors import UserError
from timm_wsms.evaluation.object_size.curve import check_factors
from timm_wsms.model_checks import check_input, check_train_sizes
from timm_wsms.registry.why_not import check_name
from timm_wsms.training import checkpoint
from timm_wsms.training.builders import adapt, build, build_optimizer, scale_head
from timm_wsms.training.distill import Teacher, build_teacher
from timm_wsms.training.loss import build_mix
from timm_wsms.training.map_sizes import check_single_images, needs_float32
from timm_wsms.training.resume_check import changed_versions, check_same_run
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings, plan

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Run:
    """One model to train: the recipe's `baseline` or its `model`.

    Attributes:
        settings: settings of this run.
        network: a timm model, on its device, without wrappers.
        optimizer: of all its parameters; frozen ones have no gradient, so it leaves them alone.
        schedule: sets the optimizer's learning rate.
        teacher: for distillation, if the settings ask for one.
        data_config: the images' preprocessing, from `data_config`.
        train_loader: this process's micro-batches.
        test_loader: this process's share of the test images.
        in_float32: the network computes in float32 whatever `settings.precision` says.
    """

    settings: Settings
    network: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    teacher: Teacher | None
    data_config: dict[str, Any]
    train_loader: Loader
    test_loader: Loader
    in_float32: bool = False

    @property
    def output(self) -> Path:
        """The folder for its result."""
        return Path(self.settings.output)

    def data_found(self) -> str:
        """What was found in the data, as JSON."""
        splits = {"train": self.train_loader.split, "test": self.test_loader.split}
        return json.dumps(summary.describe(splits, self.settings.data), indent=2, ensure_ascii=False) + "\n"


def check_settings(settings: Settings) -> None:
    """Checks what needs neither data nor a network: the output folder, the models' names, sizes of objects.

    Raises:
        UserError: the folder holds another run or cannot be written to, timm does not know a model, or a size is not
            positive.
    """
    if not settings.dry_run:
        checkpoint.check_output(Path(settings.output), settings.resume)
    for one in plan(settings):
        check_name(one.model)
    check_factors(settings.eval_object_sizes or [])


def build_runs(settings: Settings, accelerator: "Accelerator") -> list[Run]:
    """Loads the data and builds the runs that a recipe asks for. Every process has to call it.

    Raises:
        UserError: something cannot be loaded or built, or does not fit the rest; says what to change.
    """
    with accelerator.main_process_first():  # the others then find the data in the cache
        settings = dataclasses.replace(settings, data=resolve_holdout(settings.data))
        splits = load_data(settings.data, settings.seed)
    found = summary.describe({"train": splits[0], "test": splits[1]}, settings.data)
    accelerator.print("\n".join(summary.lines(found)))
    runs = [build_run(one, splits, accelerator) for one in plan(settings)]
    accelerator.wait_for_everyone()
    return runs


def build_run(settings: Settings, splits: tuple[Split | Stream, Split | Stream], accelerator: "Accelerator") -> Run:
    """Builds one run; `splits` are the training and the test images. Errors are those of `build_runs`."""
    from accelerate.utils import set_seed

    if checkpoint.newest(Path(settings.output)):
        for change in check_same_run(settings, Path(settings.output) / "settings.yaml"):
            accelerator.print(f"resuming with {change}")
        for change in changed_versions(Path(settings.output)):
            accelerator.print(f"warning: resuming with {change}; the result may not be that of an uninterrupted run")
    train_split, test_split = splits
    class_names = train_split.class_names
    classes = len(class_names)
    set_seed(settings.seed)
    network = build(settings.model, settings.model_kwargs, classes)
    scale_head(network, settings.head_init_scale)
    config = data_config(network, settings.data)
    check_input(network, settings.model, config["input_size"], classes)
    channels, *_ = config["input_size"]
    check_train_sizes(network, settings.model, channels, settings.data.train_sizes, classes)
    micro_batch = micro_batch_size(settings, accelerator.num_processes)
    sizes = [(channels, side, side) for side in settings.data.train_sizes or ()]
    train_sizes = sizes or [tuple(config["input_size"])]
    if micro_batch == 1:
        check_single_images(network, settings, train_sizes, accelerator.num_processes)
    in_float32 = needs_float32(network, settings, train_sizes, accelerator.device)
    if in_float32:
        accelerator.print(in_float32)
    share = {
        "batch_size": micro_batch,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "device": accelerator.device,
    }
    train_data = settings.data
    if settings.dry_run and train_data.train_sizes:  # whose steps then take the most memory that a step can take
        train_data = dataclasses.replace(train_data, train_sizes=[max(train_data.train_sizes)])
    train_loader = make_loader(train_split, train_data, config, train=True, seed=settings.seed, **share)
    test_loader = make_loader(test_split, settings.data, config, train=False, **share)
    if len(train_loader) < settings.grad_accumulation:
        raise UserError(f"{len(train_split)} training images do not fill a batch; lower --batch_size")
    build_mix(settings, classes, train_loader.batch_size)  # refuses what cannot be paired
    teacher = build_teacher(settings, config, class_names)
    if teacher is not None and teacher.remark:
        accelerator.print(f"teacher {settings.distill.teacher}: {teacher.remark}")
    network = adapt(network, settings, accelerator.device)
    optimizer = build_optimizer(network, settings)
    schedule = Schedule(optimizer, settings, len(train_loader) // settings.grad_accumulation)
    parts = (network, optimizer, schedule, teacher, config, train_loader, test_loader)
    return Run(settings, *parts, in_float32=in_float32 is not None)


def micro_batch_size(settings: Settings, num_processes: int) -> int:
    """Images of one forward pass in one process.

    Raises:
        UserError: `batch_size` cannot be divided.
    """
    parts = num_processes * settings.grad_accumulation
    size, remainder = divmod(settings.batch_size, parts)
    if remainder or not size:
        raise UserError(
            f"batch_size {settings.batch_size} cannot be divided among {num_processes} processes × grad_accumulation "
            f"{settings.grad_accumulation}; choose a multiple of {parts}"
        )
    return size
