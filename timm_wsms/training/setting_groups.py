"""Groups of settings that belong together, and the bounds of numeric settings."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from timm_wsms.errors import UserError

BOUNDS: dict[str, Callable[[float], bool]] = {
    "above 0": lambda x: x > 0,
    "at least 0": lambda x: x >= 0,
    "at least 1": lambda x: x >= 1,
    "between 0 and 1": lambda x: 0 <= x <= 1,
    "above 0 and at most 1": lambda x: 0 < x <= 1,
    "at least 0 and below 1": lambda x: 0 <= x < 1,
    "above 0 and below 1": lambda x: 0 < x < 1,
    "from 0 to 4294967295": lambda x: 0 <= x < 2**32,  # what NumPy takes
}
# Metadata of fields.
ABOVE_0 = {"must_be": "above 0"}
AT_LEAST_0 = {"must_be": "at least 0"}
AT_LEAST_1 = {"must_be": "at least 1"}
FRACTION = {"must_be": "between 0 and 1"}
FRACTION_ABOVE_0 = {"must_be": "above 0 and at most 1"}
FRACTION_BELOW_1 = {"must_be": "at least 0 and below 1"}
PROPER_FRACTION = {"must_be": "above 0 and below 1"}
SEED = {"must_be": "from 0 to 4294967295"}


def check_bounds(settings: Any, prefix: str = "") -> None:
    """Checks every field whose metadata has a bound, also in groups of settings. None means unset, and passes.

    Args:
        settings: an instance of a dataclass.
        prefix: what comes before the fields' names in the message, such as `optimizer.`.

    Raises:
        UserError: a value is out of bounds; names the setting.
    """
    for setting in dataclasses.fields(settings):
        value = getattr(settings, setting.name)
        if dataclasses.is_dataclass(value):
            check_bounds(value, f"{prefix}{setting.name}.")
        must_be = setting.metadata.get("must_be")
        if must_be is None or value is None:
            continue
        if not BOUNDS[must_be](value):
            raise UserError(f"{prefix}{setting.name} is {value}, but must be {must_be}")
        if not math.isfinite(value):
            raise UserError(f"{prefix}{setting.name} is {value}, but must be finite")


@dataclass
class OptimizerSettings:
    """Arguments of timm's `create_optimizer_v2`; the learning rate is the top-level `lr`."""

    name: str = "sgd"
    """timm's name for it: `sgd` has Nesterov momentum, `momentum` the plain kind; `adamw`, `lamb`, ..."""
    momentum: float = field(default=0.9, metadata=FRACTION_BELOW_1)
    """Momentum, for the optimizers that have one."""
    weight_decay: float = field(default=1e-4, metadata=AT_LEAST_0)
    """Weight decay."""
    decay_norm_and_bias: bool = True
    """Decay every parameter, as the paper does; false leaves out biases and normalization, as timm does by default."""
    layer_decay: float | None = field(default=None, metadata=FRACTION_ABOVE_0)
    """Each layer learns more slowly than the next by this factor; for fine-tuning, 0.65 to 0.9 for example."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Anything else the optimizer takes, e.g. betas."""


@dataclass
class ScheduleSettings:
    """How the learning rate changes."""

    name: Literal["constant", "step", "cosine", "onecycle"] = "constant"
    """`constant` and `step` change it between epochs only, `cosine` and `onecycle` with every update."""
    milestones: list[int] = field(default_factory=list)
    """step: from each of these epochs on, counted from 1, the learning rate is multiplied by `gamma`."""
    gamma: float = field(default=0.1, metadata=ABOVE_0)
    """step: the factor at each milestone."""
    min_lr: float = field(default=0.0, metadata=AT_LEAST_0)
    """cosine: where it ends."""
    warmup_epochs: int = field(default=0, metadata=AT_LEAST_0)
    """constant, step, cosine: epochs of linear warm-up, which count as epochs of the run."""
    warmup_lr: float = field(default=0.0, metadata=AT_LEAST_0)
    """constant, step, cosine: where the warm-up starts."""
    pct_start: float = field(default=0.3, metadata=FRACTION)
    """onecycle: the fraction of all updates in which it rises to `lr`."""
    div_factor: float = field(default=25.0, metadata=ABOVE_0)
    """onecycle: it starts at `lr / div_factor` ..."""
    final_div_factor: float = field(default=1e4, metadata=ABOVE_0)
    """onecycle: ... and ends at `lr / div_factor / final_div_factor`."""


@dataclass
class DistillSettings:
    """Knowledge distillation (Hinton et al. 2015): a trained network's logits as a second target."""

    teacher: str | None = None
    """Any name timm knows, `hf-hub:` and `local-dir:` too; it sees the same images and must know the same classes."""
    teacher_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the teacher; `pretrained` is true unless they say otherwise."""
    alpha: float = field(default=0.5, metadata=FRACTION)
    """The weight of the teacher's loss; that of the labels' is 1 - alpha."""
    temperature: float = field(default=1.0, metadata=ABOVE_0)
    """What both networks' logits are divided by before they are compared."""


@dataclass
class HubSettings:
    """Publishing the result on the Hugging Face Hub, as `hub/publish.py` does."""

    push: str | None = None
    """Publish the model as `owner/name`, at the end."""
    private: bool = False
    """Create the repo as private."""
    tag: str | None = None
    """A git tag for this version."""


def check_groups(kind: Any, values: Any) -> None:
    """Check that groups of settings hold settings, which jsonargparse takes for granted.

    Args:
        kind: A dataclass of settings.
        values: What was parsed for it, a dictionary or jsonargparse's namespace.

    Raises:
        UserError: Something else is there; names the group.
    """
    for name, hint in get_type_hints(kind).items():
        group = values.get(name)
        if not dataclasses.is_dataclass(hint) or group is None:
            continue
        if not hasattr(group, "keys"):
            raise UserError(f"{name} is a group of settings, not {str(group)[:60]!r}; give them by name")
        check_groups(hint, group)
