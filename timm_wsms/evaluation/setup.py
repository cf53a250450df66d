"""A model and the images to evaluate it on, the same for every command that evaluates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from timm_wsms.accelerator import build_accelerator
from timm_wsms.data import Loader, Split, data_config, eval_transform, make_loader
from timm_wsms.errors import UserError
from timm_wsms.evaluation.class_matching import match_classes
from timm_wsms.evaluation.model_loading import load_model
from timm_wsms.evaluation.options import REMEDIES, Options
from timm_wsms.model_checks import check_input

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Prepared:
    """A model that fits the data.

    Attributes:
        network: the timm model, on the accelerator's device.
        ordered: the same, its logits in the order of the data's classes.
        data_class: the place of each of the network's own logits in `class_names`.
        class_names: the data's classes, then those of the network that the data does not have.
        config: the config of its images, from `data_config`.
        loader: this process's share of the split.
        remark: what a user should know about the classes; None if there is nothing.
    """

    network: Any
    ordered: nn.Module
    data_class: list[int]
    class_names: list[str]
    config: dict[str, Any]
    loader: Loader
    remark: str | None

    def images(self, split: Split, places: Sequence[int]) -> torch.Tensor:
        """Some images as the loader gives them, (B, C, H, W), on the network's device."""
        transform, mode = eval_transform(self.config), "RGB" if self.config["input_size"][0] == 3 else "L"
        images = torch.stack([transform(split.image(place).convert(mode)) for place in places])
        return images.to(next(self.network.parameters()).device)


def start(options: Options) -> Accelerator:
    """The accelerator; also creates the folders for what will be written.

    Raises:
        UserError: the device or the precision is not available here, or nothing can be written to a folder.
    """
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    accelerator = build_accelerator(options.precision)
    if options.device not in (None, accelerator.device.type):
        raise UserError(f"--device {options.device} is not available here; Accelerate chose {accelerator.device.type}")
    for option, file in (("--json", options.json), ("--append", options.append)):
        if file and Path(file).is_dir():
            raise UserError(f"{option} {file} is a folder; name a file")
    folders = [Path(file).parent for file in (options.json, options.append) if file]
    folders += [Path(options.output)] if options.output else []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be created ({error.strerror}); {REMEDIES.place}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"nothing can be written to {folder}; {REMEDIES.place}")
    return accelerator


def prepare(name: str, split: Split, options: Options, accelerator: Accelerator) -> Prepared:
    """Loads a model and makes a loader of the images as it expects them.

    Raises:
        UserError: it cannot be loaded, or does not fit the data.
    """
    model = load_model(name, **options.model_kwargs)
    try:
        matched = match_classes(model, split.class_names, model.num_classes)
    except UserError as error:
        counted = split.class_names == [str(number) for number in range(len(split.class_names))]
        last = counted and len(split.class_names) < model.num_classes  # labels that are names count themselves
        raise UserError(
            f"{name} {error} (split {split.name!r} of {options.data}); name a model or a --label_column that fits"
            + (f", or give --num_classes {model.num_classes} if the split has no image of the last" if last else "")
        ) from error
    settings = options.data_settings()
    option = settings.option("input_size")
    if options.input_size:  # before its mean and std are checked, which are three for three channels
        check_input(model, name, options.input_size, model.num_classes, option)
    config = data_config(model, settings, use_test_size=True)
    check_input(model, name, config["input_size"], model.num_classes, option)
    loader = _loader(split, config, options, accelerator)
    ordered = matched.model.to(accelerator.device)
    if options.channels_last:
        ordered.to(memory_format=torch.channels_last)
    order = getattr(ordered, "order", torch.arange(model.num_classes))
    return Prepared(model, ordered, order.argsort().tolist(), matched.class_names, config, loader, matched.remark)


def at_factor(one: Prepared, name: str, split: Split, options: Options, accelerator: Accelerator, f: float) -> Prepared:
    """The same model with images whose sides are f times as long, rounded to whole pixels.

    Raises:
        UserError: It does not accept images of that size.
    """
    channels, *sides = one.config["input_size"]
    config = {**one.config, "input_size": (channels, *(max(1, round(side * f)) for side in sides))}
    check_input(one.network, name, config["input_size"], one.network.num_classes, "other --image_factors")
    return replace(one, config=config, loader=_loader(split, config, options, accelerator))


def _loader(split: Split, config: dict[str, Any], options: Options, accelerator: Accelerator) -> Loader:
    """This process's share of the split, prepared for evaluation."""
    share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes, "device": accelerator.device}
    return make_loader(split, options.data_settings(), config, batch_size=options.batch_size, train=False, **share)
