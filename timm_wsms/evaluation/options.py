"""The options of an evaluation, named as in timm's validate.py where it has the same."""

import argparse
import dataclasses
import sys
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal, TypeVar, get_type_hints

import jsonargparse

from timm_wsms.cli_errors import Remedies
from timm_wsms.data import DataSettings
from timm_wsms.errors import UserError
from timm_wsms.evaluation.object_size.curve import FACTORS
from timm_wsms.object_scaling import Border

REMEDIES = Remedies(
    place="choose another --json or --output",
    workers="lower --workers",
    memory="lower --batch_size, or use --precision bf16",
)
# The data room's settings that have another name here.
OTHER_NAMES = {"source": "data", "train_split": "split", "test_split": "split"}


class EvaluationData(DataSettings):
    """The data room's settings; its messages use this command's names for them."""

    def option(self, name: str) -> str:
        return f"--{OTHER_NAMES.get(name, name)}"


@dataclass
class Options:
    """The options of an evaluation."""

    data: str
    """`digits`, a local folder (image folder or parquet files), or a Hub name."""
    config: str | None = None
    """The Hub data set's configuration, where it has several."""
    split: str | None = None
    """Name of the split, or a part of it such as `test[:20%]`; by default `test`, else a validation split under any of
    its usual names. With --holdout: of the split that it was taken from, by default `train`."""
    holdout: float | None = None
    """Evaluate on what a run with this `data.holdout` and --seed has held out from its training split."""
    image_column: str | None = None
    """The column of images; by default the only one there is."""
    label_column: str | None = None
    """The column of labels; by default the only one of class labels, else one called `label` or the like, else the only
    one of integers, or strings. In an image folder: a column of its `metadata.csv`, in place of the class folders."""
    value_range: tuple[float, float] | None = None
    """The values of black and white in images of more than 8 bits per channel; by default as each file says."""
    num_classes: int | None = None
    """Number of classes where labels are plain integers; by default one more than the largest."""
    limit: int | None = None
    """Evaluate on N images only, an even sample over classes."""
    seed: int = 0
    """The seed of the training run: the split of the embedded digits and the images of --holdout depend on it."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the models, e.g. `--model_kwargs.img_size 256`."""
    input_size: list[int] | None = None
    """Channels, height and width of what the network is fed; by default the model's own for evaluation."""
    crop_pct: float | None = None
    """The part of the resized image that the center crop keeps; by default the model's own for evaluation."""
    mean: list[float] | None = None
    """Mean of each channel, of pixels between 0 and 1, to be subtracted; by default the model's own."""
    std: list[float] | None = None
    """Standard deviation of each channel, to be divided by; by default the model's own."""
    on_bad_image: Literal["error", "skip"] = "error"
    """An image that cannot be decoded is an error, or is left out and counted."""
    batch_size: int = 128
    """Images per forward pass in each process."""
    workers: int = 2
    """Processes that decode images, for each process that evaluates."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; by default float32."""
    channels_last: bool = False
    """Keep weights in channels-last order, which is faster for convolutions on most machines."""
    device: Literal["cpu", "cuda", "mps", "xpu"] | None = None
    """The device; by default what Accelerate chooses."""
    json: str | None = None
    """A file for all figures, rewritten after each model."""
    append: str | None = None
    """A file to which one line of JSON is added per model, to compare models over time: `results.jsonl`."""
    output: str | None = None
    """A folder for each model's `per_class.csv` and `confusion.png`."""

    def data_settings(self) -> DataSettings:
        """The same under the data room's names."""
        own = {one.name for one in dataclasses.fields(self)}
        names = {one.name: OTHER_NAMES.get(one.name, one.name) for one in dataclasses.fields(DataSettings)}
        values = {setting: getattr(self, name) for setting, name in names.items() if name in own}
        defaults = {"train_split": DataSettings.train_split, "test_split": DataSettings.test_split}
        return EvaluationData(**{**values, **{setting: self.split or name for setting, name in defaults.items()}})


@dataclass
class AccuracyOptions(Options):
    """The options of an evaluation of accuracy."""

    cascade: float | None = None
    """Also evaluate averaging networks with early exits: the smallest image first, larger ones only if not confident
    (`timm_wsms.Cascade`). Thresholds are chosen on a validation split, or on half of the images if there is no other,
    such that accuracy falls by at most this many points, such as 1."""
    image_factors: list[float] = field(default_factory=list)
    """Also evaluate each model at fractions of its image size, such as `[0.5, 0.71]`: what smaller images save and
    cost without a cascade. `cascade.png` then has a curve for each model that has no cascade."""
    output: str | None = None
    """A folder for each model's `per_class.csv` and `confusion.png`; with --cascade, `cascade.png`."""


@dataclass
class ScaleOptions(Options):
    """The options of an evaluation at several object sizes."""

    factors: list[float] = field(default_factory=lambda: list(FACTORS))
    """Sizes of the object, relative to the image's own; 1 is always among them."""
    border: Border = "mean"
    """What surrounds a smaller object: the image's mean color, its edge color, or the image mirrored or blurred."""
    stages: bool = False
    """Also measure the accuracy lost without each stage, and draw a heat map per stage; needs --output."""
    heat_images: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
    """The images, by their place in the split, whose heat maps `--stages` draws."""
    gallery: bool = False
    """Also draw images that only the last model gets right, next to a random draw (the paper's Fig. 5)."""
    seed: int = 0
    """Seed of the bootstrap and the gallery; for the embedded digits and --holdout, that of the training run."""
    json: str | None = None
    """A file for all figures."""
    output: str | None = None
    """A folder for the pictures: `scale.png`; `stages.png` and `heat_<model>.png`; `gallery.png`."""
    cache: str | None = None
    """A folder to keep results in, instead of `$HF_ASSETS_CACHE`; `off`: neither read nor keep them."""


T = TypeVar("T", bound=Options)


def parse(argv: list[str] | None, kind: type[T], command: str, description: str) -> tuple[list[str], T]:
    """Reads the models' names and the options from the command line.

    Args:
        argv: its words; None: this program's.
        kind: `Options`, or a subclass with more of them.
        command: the module that is run, `timm_wsms.<command>`.
        description: what it does.

    Raises:
        UserError: unknown option, wrong type.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=f"python -m timm_wsms.{command}",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="A checkpoint folder, `hf-hub:owner/name`, or a timm model name."
    )
    parser.add_class_arguments(kind, nested_key=None)
    words = list(sys.argv[1:] if argv is None else argv)
    switches = {f"--{name}" for name, hint in get_type_hints(kind).items() if hint is bool}
    for word, value in zip_longest(tuple(words), tuple(words[1:])):
        if word in switches and value not in ("true", "false"):  # `--stages` for `--stages true`
            words[words.index(word)] = f"{word}=true"
    try:
        namespace = parser.instantiate(parser.parse_args(words))
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        raise UserError(str(error)) from None
    values = namespace.as_dict()
    if not 0 <= values["seed"] < 2**32:  # what NumPy takes
        raise UserError(f"--seed is {values['seed']}, but must be from 0 to {2**32 - 1}")
    return values.pop("models"), kind(**values)
