"""What a training run can be told: typed settings, read from a recipe (YAML) and the command line."""

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from timm_wsms.data.settings import DataSettings
from timm_wsms.errors import UserError


@dataclass
class OptimizerSettings:
    """Arguments of timm's `create_optimizer_v2`; the learning rate is the top-level `lr`."""

    name: str = "sgd"
    """timm's name for it: `sgd` has Nesterov momentum, `momentum` the plain kind; `adamw`, `lamb`, ..."""
    momentum: float = 0.9
    """Momentum, for the optimizers that have one."""
    weight_decay: float = 1e-4
    """Weight decay."""
    decay_norm_and_bias: bool = True
    """Decay every parameter, as the paper does; false leaves out biases and normalization, as is timm's habit."""
    layer_decay: float | None = None
    """Layers before the last learn more slowly, each by this factor again; for fine-tuning, 0.65 to 0.9 say."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Anything else the optimizer takes, e.g. betas."""


@dataclass
class ScheduleSettings:
    """How the learning rate changes."""

    name: Literal["constant", "step", "cosine", "onecycle"] = "constant"
    """`constant` and `step` change it between epochs only, `cosine` and `onecycle` with every update."""
    milestones: list[int] = field(default_factory=list)
    """step: from each of these epochs on, counted from 1, it is multiplied by `gamma`."""
    gamma: float = 0.1
    """step: the factor at each milestone."""
    min_lr: float = 0.0
    """cosine: where it ends."""
    warmup_epochs: int = 0
    """constant, step, cosine: epochs of linear warm-up, which count as epochs of the run."""
    warmup_lr: float = 0.0
    """constant, step, cosine: where the warm-up starts."""
    pct_start: float = 0.3
    """onecycle: the part of all updates in which it rises to `lr`."""
    div_factor: float = 25.0
    """onecycle: it starts at `lr / div_factor` ..."""
    final_div_factor: float = 1e4
    """onecycle: ... and ends at `lr / div_factor / final_div_factor`."""


@dataclass
class DistillSettings:
    """Knowledge distillation (Hinton et al. 2015): a trained network's logits as a second target."""

    teacher: str | None = None
    """Any name timm knows, `hf-hub:` and `local-dir:` too; it sees the same images and must know the same classes."""
    teacher_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the teacher; `pretrained` is true unless they say otherwise."""
    alpha: float = 0.5
    """The teacher's part of the loss; the labels' is 1 - alpha."""
    temperature: float = 1.0
    """What both networks' logits are divided by before they are compared."""


@dataclass
class HubSettings:
    """Publishing the result on the Hugging Face Hub, as `hub/publish.py` does."""

    push: str | None = None
    """Publish the model as `owner/name`, at the end."""
    private: bool = False
    """In a repo that only its owner sees."""
    tag: str | None = None
    """Name this version."""


if TYPE_CHECKING:
    import jsonargparse

COUNTS = ("epochs", "batch_size", "grad_accumulation", "eval_every", "checkpoint_every", "keep_last")


@dataclass
class Settings:
    """One training run."""

    model: str
    """Any name timm knows after `import timm_wsms`: `wsms_<backbone>`, `ms_<backbone>` or a plain backbone."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the model, e.g. `--model_kwargs.stages 2`."""
    baseline: str | None = None
    """A second model, trained first with the same settings and compared with `model`."""
    baseline_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `baseline`."""
    data: DataSettings = field(default_factory=DataSettings)
    output: str = "outputs/run"
    """The folder for the result."""
    epochs: int = 10
    """How often every training image is seen."""
    batch_size: int = 128
    """Images per optimizer step, over all processes and accumulation steps."""
    lr: float = 0.1
    """The peak learning rate."""
    seed: int = 0
    """Fixes the initial weights, the order of the images, augmentation and dropout."""
    resume: Literal["no", "auto"] = "no"
    """`auto` goes on from the newest checkpoint in `output`, if any; `no` refuses a folder that holds a run."""
    resume_with_changes: bool = False
    """Resume also if settings have changed so that the result is another than that of an uninterrupted run."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision for training; the final accuracy is measured in float32. (YAML wants quotes: 'no'.)"""
    grad_accumulation: int = 1
    """Forward and backward passes per optimizer step; more of them need less memory for the same `batch_size`."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, more time."""
    sync_bn: bool = False
    """Batch normalization over the images of all processes (GPUs only), not of each process by itself."""
    clip_grad: float | None = None
    """Clip the norm of all gradients to this."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights, which then are the ones evaluated and published."""
    ema_warmup: bool = False
    """Let the average forget faster at first, by timm's rule, until it has come to `ema_decay`."""
    head_init_scale: float | None = None
    """Multiply the classifier's initial weights and biases by this, as timm's `--head-init-scale` does. In
    fine-tuning a small number, such as 0.01, starts the loss at that of chance."""
    freeze: Literal["none", "backbone"] = "none"
    """`backbone` trains the integration layer and the classifier only; the other norms keep their statistics too."""
    freeze_epochs: int | None = None
    """With `freeze`: only in so many epochs, then all is trained; by default in all epochs."""
    distill: DistillSettings = field(default_factory=DistillSettings)
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Cross entropy, or binary cross entropy of each class by itself."""
    bce_threshold: float | None = None
    """bce: labels that are mixed count as 1 if above this, else as 0; by default as what they are."""
    label_smoothing: float = 0.0
    """Label smoothing of the loss."""
    stage_loss: float = 0.0
    """Weight of the mean of the stages' own losses, beside the loss of the whole `model`, which has `fusion="mean"`;
    `baseline` is trained without this and the next three."""
    stage_distill: float = 0.0
    """Weight of the distillation of the mean of all logits into each stage (RS-Net)."""
    stage_distill_temperature: float = 1.0
    """What logits are divided by before they are compared for `stage_distill`."""
    stage_consistency: float = 0.0
    """Weight of the smooth L1 distance of the stages' pooled features from those of the largest image (ResFormer)."""
    mixup: float = 0.0
    """Mix pairs of images, in parts drawn from Beta(mixup, mixup); 0 for not at all."""
    cutmix: float = 0.0
    """Paste a part of one image into another, its area drawn from Beta(cutmix, cutmix); 0 for not at all."""
    mixup_prob: float = 1.0
    """Probability that the images of a forward pass are mixed, one way or the other."""
    mixup_switch_prob: float = 0.5
    """With both: probability of cutmix."""
    max_skipped_steps: int = 0
    """Leave out so many steps of an epoch whose loss or gradient is not finite; one more ends the run."""
    channels_last: bool = False
    """Keep images and weights in channels-last order, which is faster for convolutions on most machines."""
    compile: bool = False
    """Compile the model with `torch.compile`."""
    eval_every: int = 1
    """Evaluate after every so many epochs, and after the last."""
    early_stop: int | None = None
    """End the run after so many epochs without a better accuracy than the best before."""
    trackers: list[str] = field(default_factory=list)
    """Where else to log, by Accelerate's names: `tensorboard` (files in `output`), `wandb`, ..."""
    checkpoint_every: int = 1
    """Write a checkpoint after every so many epochs, and after the last."""
    checkpoint_every_steps: int | None = None
    """Write a checkpoint also after every so many optimizer steps of an epoch."""
    checkpoint_every_minutes: float | None = None
    """Write a checkpoint also after every so many minutes of an epoch."""
    keep_last: int = 2
    """Keep so many of the newest checkpoints; the older ones are there in case the newest turns out damaged."""
    keep_best: int = 1
    """Keep the checkpoints of so many of the epochs with the highest accuracy."""
    hang_timeout: float = 1800.0
    """Seconds without any progress after which a run ends and says which process is behind."""
    hub: HubSettings = field(default_factory=HubSettings)
    dry_run: bool = False
    """`--dry-run`: build all, run two steps and an evaluation batch, tell memory and hours; nothing is written."""

    @property
    def trains_stages(self) -> bool:
        """Whether the loss is one of every stage's predictions, not of their mean alone."""
        return self.stage_loss > 0 or self.stage_distill > 0 or self.stage_consistency > 0

    def __post_init__(self) -> None:
        """Refuses values that have the right type but make no sense.

        Raises:
            UserError: names the setting.
        """
        optimizer, schedule, distill = self.optimizer, self.schedule, self.distill
        above_0 = [
            *("lr", "clip_grad", "freeze_epochs", "early_stop"),
            *("hang_timeout", "checkpoint_every_steps", "checkpoint_every_minutes"),
        ]
        stages = ("stage_loss", "stage_distill", "stage_consistency")
        at_least_0 = ("mixup", "cutmix", *stages, "max_skipped_steps", "keep_best")
        parts = ("mixup_prob", "mixup_switch_prob")
        for name, value, sound, rule in (
            *((name, n := getattr(self, name), n >= 1, "at least 1") for name in COUNTS),
            *((name, x := getattr(self, name), x is None or x > 0, "above 0") for name in above_0),
            *((name, x := getattr(self, name), x >= 0, "at least 0") for name in at_least_0),
            *((name, x := getattr(self, name), 0 <= x <= 1, "between 0 and 1") for name in parts),
            ("ema_decay", x := self.ema_decay, x is None or 0 < x < 1, "between 0 and 1"),
            (
                "bce_threshold",
                x := self.bce_threshold,
                x is None or (0 < x < 1 and self.loss == "bce"),
                "of loss bce, between 0 and 1",
            ),
            ("label_smoothing", x := self.label_smoothing, 0 <= x < 1, "at least 0 and below 1"),
            ("optimizer.layer_decay", x := optimizer.layer_decay, x is None or 0 < x <= 1, "above 0 and at most 1"),
            ("schedule.warmup_epochs", n := schedule.warmup_epochs, n >= 0, "at least 0"),
            ("schedule.milestones", several := schedule.milestones, several == sorted(several), "ascending"),
            ("distill.alpha", x := distill.alpha, 0 <= x <= 1, "between 0 and 1"),
            ("distill.temperature", x := distill.temperature, x > 0, "above 0"),
            ("freeze", self.freeze, self.freeze_epochs is None or self.freeze != "none", "backbone with freeze_epochs"),
            *(
                (
                    name,
                    x := getattr(self, name),
                    not (x and distill.teacher),
                    "0 with distill.teacher, which knows of whole networks only",
                )
                for name in stages
            ),
            ("stage_distill_temperature", x := self.stage_distill_temperature, x > 0, "above 0"),
            (
                "head_init_scale",
                x := self.head_init_scale,
                x is None or x > 0,
                "above 0",
            ),
            (
                "ema_warmup",
                self.ema_warmup,
                self.ema_decay is not None or not self.ema_warmup,
                "false without ema_decay",
            ),
        ):
            if not sound:
                raise UserError(f"{name} is {value}, but must be {rule}")


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
    """Reads settings from a recipe and the command line, which overrides the recipe wherever `--recipe` stands.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Raises:
        UserError: unknown key, wrong type, no such recipe; names the key.
    """
    import jsonargparse

    # jsonargparse lets what stands later win, so the recipe has to be read first.
    recipes = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    recipes.add_argument("--recipe", action="append", default=[])
    recipes.add_argument("--dry-run", action="store_true")
    settings = parser()
    try:
        found, rest = recipes.parse_known_args(argv)
        rest += ["--dry_run=true"] * found.dry_run
        namespace = settings.parse_args([*(f"--recipe={path}" for path in found.recipe), *rest])
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        message = " ".join(str(error).split())
        if message.startswith("Problems parsing config"):  # no YAML
            message = f"recipe {' '.join(found.recipe)}: {message}"
        raise UserError(message) from None
    values = settings.instantiate(namespace).as_dict()
    values.pop("recipe")
    return Settings(**values)


def plan(settings: Settings) -> list[Settings]:
    """The runs that a recipe asks for: first the baseline, if there is one, with the same settings; then the model."""
    if settings.baseline is None:
        return [settings]
    baseline = dataclasses.replace(
        settings,
        model=settings.baseline,
        model_kwargs=settings.baseline_kwargs,
        baseline=None,
        baseline_kwargs={},
        stage_loss=0.0,
        stage_distill=0.0,
        stage_consistency=0.0,
        output=str(Path(settings.output) / "baseline"),
    )
    return [baseline, settings]


def dump(settings: Settings) -> str:
    """Returns the settings as YAML, itself a valid recipe."""
    return yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False, allow_unicode=True)


def portable(settings: Settings) -> Settings:
    """Returns the settings without this machine's paths, for publishing: of local files only their names are left."""
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
