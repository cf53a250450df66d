"""The settings of a training run: typed, read from a recipe (YAML) and the command line."""

import argparse
import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from timm_wsms.data.settings import DataSettings
from timm_wsms.errors import UserError
from timm_wsms.foreign import read_yaml
from timm_wsms.registry.arguments import NETWORK_ARGS, prefix_of
from timm_wsms.training.setting_groups import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    FRACTION,
    FRACTION_BELOW_1,
    PROPER_FRACTION,
    SEED,
    DistillSettings,
    HubSettings,
    OptimizerSettings,
    ScheduleSettings,
    check_bounds,
    check_groups,
)

if TYPE_CHECKING:
    import jsonargparse


@dataclass
class Settings:
    """One training run."""

    model: str
    """A timm model name: `wsmean_<backbone>` (recommended), `wsms_<backbone>`, `ms_<backbone>`, or a plain backbone."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the model, e.g. `--model_kwargs.stages 2`."""
    baseline: str | None = None
    """A second model, trained first with the same settings and compared with `model`. `auto`: the backbone of `model`,
    with the keyword arguments that are the backbone's."""
    baseline_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `baseline`."""
    data: DataSettings = field(default_factory=DataSettings)
    output: str = "outputs/run"
    """The folder for the result."""
    epochs: int = field(default=10, metadata=AT_LEAST_1)
    """The number of passes over the training images."""
    batch_size: int = field(default=128, metadata=AT_LEAST_1)
    """Images per optimizer step, over all processes and accumulation steps."""
    lr: float = field(default=0.1, metadata=ABOVE_0)
    """The peak learning rate."""
    seed: int = field(default=0, metadata=SEED)
    """Fixes the initial weights, the order of the images, augmentation and dropout."""
    resume: Literal["no", "auto"] = "no"
    """`auto` continues from the newest checkpoint in `output`, if any; `no` refuses a folder that holds a run."""
    resume_with_changes: bool = False
    """Resume even if settings have changed in a way that changes the result."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision for training; the final accuracy is measured in float32. (YAML wants quotes: 'no'.)"""
    grad_accumulation: int = field(default=1, metadata=AT_LEAST_1)
    """Forward and backward passes per optimizer step; more of them need less memory for the same `batch_size`."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, more time."""
    sync_bn: bool = False
    """Batch normalization over the images of all processes (GPUs only), not of each process separately."""
    clip_grad: float | None = field(default=None, metadata=ABOVE_0)
    """Clip the norm of all gradients to this."""
    ema_decay: float | None = field(default=None, metadata=PROPER_FRACTION)
    """Keep an exponential moving average of the weights, which is then evaluated and published."""
    ema_warmup: bool = False
    """Let the average forget faster at first, by timm's rule, until it reaches `ema_decay`."""
    head_init_scale: float | None = field(default=None, metadata=ABOVE_0)
    """Multiply the classifier's initial weights and biases by this, as timm's `--head-init-scale` does. In
    fine-tuning, a small number such as 0.01 makes the loss start at chance level."""
    freeze: Literal["none", "backbone"] = "none"
    """`backbone` trains the integration layer and the classifier only; the other norms keep their statistics too."""
    freeze_epochs: int | None = field(default=None, metadata=AT_LEAST_1)
    """With `freeze`: number of epochs after which everything is trained; by default never."""
    distill: DistillSettings = field(default_factory=DistillSettings)
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Cross entropy, or binary cross entropy for each class separately."""
    bce_threshold: float | None = field(default=None, metadata=PROPER_FRACTION)
    """bce: mixed labels count as 1 if above this, else as 0; by default they keep their values."""
    label_smoothing: float = field(default=0.0, metadata=FRACTION_BELOW_1)
    """Label smoothing of the loss."""
    stage_loss: float = field(default=0.0, metadata=AT_LEAST_0)
    """Weight of the mean of the stages' losses, added to the loss of the averaged logits; needs `fusion="mean"`.
    `baseline` is trained without this and the next three."""
    stage_distill: float = field(default=0.0, metadata=AT_LEAST_0)
    """Weight of the distillation of the mean of all logits into each stage (RS-Net)."""
    stage_distill_temperature: float = field(default=1.0, metadata=ABOVE_0)
    """What logits are divided by before they are compared for `stage_distill`."""
    stage_consistency: float = field(default=0.0, metadata=AT_LEAST_0)
    """Weight of the smooth L1 distance of the stages' pooled features from those of the largest image (ResFormer)."""
    mixup: float = field(default=0.0, metadata=AT_LEAST_0)
    """Mix pairs of images, with weights drawn from Beta(mixup, mixup); 0: never."""
    cutmix: float = field(default=0.0, metadata=AT_LEAST_0)
    """Paste a part of one image into another, its area drawn from Beta(cutmix, cutmix); 0: never."""
    mixup_prob: float = field(default=1.0, metadata=FRACTION)
    """Probability that the images of a forward pass are mixed, one way or the other."""
    mixup_switch_prob: float = field(default=0.5, metadata=FRACTION)
    """With both: probability of cutmix."""
    max_skipped_steps: int = field(default=0, metadata=AT_LEAST_0)
    """Steps per epoch that may be skipped because their loss or gradient is not finite; one more ends the run."""
    channels_last: bool = False
    """Keep images and weights in channels-last order, which is faster for convolutions on most machines."""
    compile: bool = False
    """Compile the model with `torch.compile`: a network of several stages into one graph per stage."""
    eval_every: int = field(default=1, metadata=AT_LEAST_1)
    """Number of epochs between two evaluations; the last epoch is always evaluated."""
    eval_object_sizes: list[float] | None = None
    """After training, also evaluate and compare the models with the object of each test image at these sizes, such as
    [0.5, 1, 2]; 1 is the original size, and always included."""
    early_stop: int | None = field(default=None, metadata=AT_LEAST_1)
    """Number of epochs without a new best accuracy after which the run ends."""
    trackers: list[str] = field(default_factory=list)
    """Where else to log; Accelerate's names: `tensorboard` (files in `output`), `wandb`, ..."""
    checkpoint_every: int = field(default=1, metadata=AT_LEAST_1)
    """Number of epochs between two checkpoints; the last epoch always gets one."""
    checkpoint_every_steps: int | None = field(default=None, metadata=AT_LEAST_1)
    """Number of optimizer steps between two more checkpoints within an epoch."""
    checkpoint_every_minutes: float | None = field(default=None, metadata=ABOVE_0)
    """Number of minutes between two more checkpoints within an epoch."""
    keep_last: int = field(default=2, metadata=AT_LEAST_1)
    """Number of newest checkpoints to keep; the older ones are there in case the newest turns out damaged."""
    keep_best: int = field(default=1, metadata=AT_LEAST_0)
    """Number of epochs with the highest accuracy whose checkpoints are kept."""
    hang_timeout: float = field(default=1800.0, metadata=ABOVE_0)
    """Seconds without any progress after which a run ends and says which process is behind."""
    hub: HubSettings = field(default_factory=HubSettings)
    dry_run: bool = False
    """`--dry-run`: build everything, run two steps and an evaluation batch, report memory and hours; write nothing."""

    @property
    def trains_stages(self) -> bool:
        """Whether the loss uses every stage's predictions, not only their mean."""
        return self.stage_loss > 0 or self.stage_distill > 0 or self.stage_consistency > 0

    def __post_init__(self) -> None:
        """Refuses values that have the right type but make no sense.

        Raises:
            UserError: names the setting.
        """
        check_bounds(self)
        milestones = self.schedule.milestones
        if milestones != sorted(milestones) or min(milestones, default=1) < 1:
            raise UserError(f"schedule.milestones is {milestones}, but must be epochs from 1 on, in ascending order")
        if self.schedule.name == "cosine" and self.schedule.min_lr > self.lr:
            raise UserError(f"schedule.min_lr is {self.schedule.min_lr}, but must not be above lr, {self.lr}")
        if self.schedule.name != "onecycle" and self.schedule.warmup_epochs > self.epochs:
            raise UserError(
                f"schedule.warmup_epochs is {self.schedule.warmup_epochs}, but must not be above epochs, {self.epochs}"
            )
        if self.bce_threshold is not None and self.loss != "bce":
            raise UserError(f"bce_threshold is {self.bce_threshold}, but loss is {self.loss}; set --loss bce")
        if self.ema_warmup and self.ema_decay is None:
            raise UserError("ema_warmup is true, but there is no average; set --ema_decay")
        if self.freeze_epochs is not None and self.freeze == "none":
            raise UserError(f"freeze_epochs is {self.freeze_epochs}, but freeze is none; set --freeze backbone")
        if self.trains_stages and self.distill.teacher:
            raise UserError(
                "distill.teacher teaches the whole network, not its stages; set stage_loss, stage_distill and "
                "stage_consistency to 0, or leave out the teacher"
            )


def parser() -> "jsonargparse.ArgumentParser":
    """Returns the command line's parser: `--recipe` and every setting."""
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)  # `--help` shows the docstrings above
    result = jsonargparse.ArgumentParser(
        prog="train_accelerate.py",
        description="Train any timm model, WSMS networks among them, on images.",
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
    )
    result.add_argument("--recipe", action="config", help="A YAML file of settings; the command line overrides it.")
    result.add_class_arguments(Settings, nested_key=None)
    return result


def parse(argv: list[str] | None = None) -> Settings:
    """Reads settings from a recipe and the command line, which overrides the recipe regardless of their order.

    Args:
        argv: arguments without the program's name; None for those of the process.

    Raises:
        UserError: unknown key, wrong type, no such recipe; names the key.
    """
    import jsonargparse

    # In jsonargparse later arguments win, so the recipe has to be read first.
    recipes = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    recipes.add_argument("--recipe", action="append", default=[])
    recipes.add_argument("--dry-run", action="store_true")
    settings = parser()
    try:
        found, rest = recipes.parse_known_args(argv)
        for path in filter(os.path.isfile, found.recipe):  # the parser would follow aliases without end
            read_yaml(Path(path), "fix it")
        rest += ["--dry_run=true"] * found.dry_run
        namespace = settings.parse_args([*(f"--recipe={path}" for path in found.recipe), *rest])
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        message = " ".join(str(error).split())
        if message.startswith("Problems parsing config"):  # no YAML
            message = f"recipe {' '.join(found.recipe)}: {message}"
        raise UserError(message) from None
    check_groups(Settings, namespace)
    values = settings.instantiate(namespace).as_dict()
    return Settings(**{key: value for key, value in values.items() if key != "recipe"})


def plan(settings: Settings) -> list[Settings]:
    """The runs that a recipe asks for: first the baseline, if there is one, with the same settings; then the model.

    Raises:
        UserError: `baseline` is `auto`, but the name of the model does not say what its backbone is.
    """
    if settings.baseline is None:
        return [settings]
    name, arguments = _baseline(settings, settings.baseline)
    baseline = dataclasses.replace(
        settings,
        model=name,
        model_kwargs=arguments,
        baseline=None,
        baseline_kwargs={},
        stage_loss=0.0,
        stage_distill=0.0,
        stage_consistency=0.0,
        output=str(Path(settings.output) / "baseline"),
    )
    return [baseline, settings]


def _baseline(settings: Settings, name: str) -> tuple[str, dict[str, Any]]:
    """The baseline's name and its keyword arguments; `name` is what the settings say, which may be `auto`."""
    if name != "auto":
        return name, settings.baseline_kwargs
    prefix = prefix_of(settings.model)
    if prefix is None:
        raise UserError(
            f"baseline is auto, but {settings.model} does not name its backbone, as wsmean_<backbone> does; name the "
            "baseline, or leave it out with --baseline null"
        )
    arguments = {key: value for key, value in settings.model_kwargs.items() if key not in NETWORK_ARGS}
    return settings.model.removeprefix(prefix), {**arguments, **settings.baseline_kwargs}


def dump(settings: Settings) -> str:
    """Returns the settings as YAML, itself a valid recipe."""
    return yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False, allow_unicode=True)


def portable(settings: Settings) -> Settings:
    """Returns the settings without this machine's paths, for publishing: only the names of local files are left."""
    return dataclasses.replace(_only_names(settings), output=f"outputs/{Path(settings.output).resolve().name}")


def _only_names(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{name: _only_names(inner) for name, inner in vars(value).items()})
    if isinstance(value, dict):
        return {key: _only_names(inner) for key, inner in value.items()}
    if isinstance(value, str):
        path = value.removeprefix("local-dir:")
        return value.removesuffix(path) + Path(path).resolve().name if path and Path(path).exists() else value
    return value
