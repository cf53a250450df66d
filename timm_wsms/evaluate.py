"""Accuracy of trained models on images: top-1, top-5, and class by class.

    python -m timm_wsms.evaluate MODEL [MODEL …] --data SOURCE [--json FILE] [--output FOLDER]

A model is a checkpoint folder, a name on the Hub (`hf-hub:owner/name`), or a name of timm's. The source is what
`--data.source` of the training script takes. Images are prepared as timm's validate.py does: by the model's own config,
at the size it recommends for evaluation. With several processes (`accelerate launch -m timm_wsms.evaluate …`) the
figures are the same.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from timm_wsms import evaluation
from timm_wsms.data import Split, data_config, load_splits, make_loader
from timm_wsms.errors import UserError
from timm_wsms.evaluation.options import Options, in_own_terms, parse
from timm_wsms.training import faults
from timm_wsms.training.build import build_accelerator, check_input
from timm_wsms.training.settings import Settings
from timm_wsms.training.whole import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_CLASSES = 20  # that are all printed; of more, so many of those that are recognized least


def main(argv: list[str] | None = None) -> None:
    """Evaluates the models that the command line names, prints a table, and writes what the options ask for.

    Raises:
        UserError: a mistake that the user can mend; the message names the option.
    """
    names, options = parse(argv)
    try:
        evaluate(names, options)
    except UserError as error:
        raise UserError(in_own_terms(str(error))) from error
    except Exception as error:
        if faults.is_out_of_memory(error):
            raise UserError("out of memory: lower --batch_size, or take --precision bf16") from error
        raise


def evaluate(names: list[str], options: Options) -> None:
    """Evaluates models on one source."""
    for name in names:
        evaluation.timm_name(name)  # all of them, before the first is evaluated
    accelerator = start(options, names[0])
    with accelerator.main_process_first():  # the others then find the data in the cache
        split = load_splits(options.data_settings(), options.seed)[1]
    results, rows = [], []
    for name in names:
        result, row = measure(name, split, options, accelerator)
        results.append(result)
        rows.append(row)
        accelerator.print(f"{name}: {row.accuracy:.2f} % of {result['images']} images")
        if options.json and accelerator.is_main_process:
            what = {"data": options.data, "split": split.name, "precision": options.precision, "models": results}
            write_text(Path(options.json), json.dumps(what, indent=2, ensure_ascii=False) + "\n")
    accelerator.print(f"\n{evaluation.text_table(rows)}\n\n{class_table(results)}")
    accelerator.end_training()


def start(options: Options, model: str) -> Accelerator:
    """The accelerator, and the folders for what is to be written.

    Raises:
        UserError: the device or the precision is not to be had here, or a folder cannot be made.
    """
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    accelerator = build_accelerator(Settings(model, precision=options.precision))
    if options.device not in (None, accelerator.device.type):
        raise UserError(f"--device {options.device} is not to be had here; Accelerate chose {accelerator.device.type}")
    folders = [Path(options.json).parent] if options.json else []
    folders += [Path(options.output)] if options.output else []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made ({error.strerror}); choose another --json or --output") from error
    return accelerator


def measure(
    name: str, split: Split, options: Options, accelerator: Accelerator
) -> tuple[dict[str, Any], evaluation.Row]:
    """Evaluates one model.

    Returns:
        All its figures, and its row in the table.

    Raises:
        UserError: it cannot be loaded, or does not fit the data.
    """
    model = evaluation.load_model(name, **options.model_kwargs)
    if model.num_classes != len(split.class_names):
        raise UserError(
            f"{name} has {model.num_classes} classes, but split {split.name!r} of {options.data} has "
            f"{len(split.class_names)}; name a model or a --label_column that fits"
        )
    if options.input_size:  # before its mean and std are looked at, which are three for three channels
        check_input(model, name, options.input_size, model.num_classes)
    settings = options.data_settings()
    config = data_config(model, settings, use_test_size=True)
    check_input(model, name, config["input_size"], model.num_classes)
    cost = evaluation.parameters(model), evaluation.multiplications(model, config["input_size"])
    share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    loader = make_loader(split, settings, config, batch_size=options.batch_size, train=False, **share)
    ordered, remark = evaluation.in_order_of(model, split.class_names)
    if remark:
        accelerator.print(f"{name}: {remark}")
    ordered.to(accelerator.device)
    if options.channels_last:
        ordered.to(memory_format=torch.channels_last)
    found = evaluation.predict(ordered, loader, accelerator, len(split), progress=True)
    by_size = {} if split.object_sizes is None else evaluation.accuracy_by_size(found, split.object_sizes)
    if options.output and accelerator.is_main_process:
        folder = Path(options.output) / re.sub(r"[^\w.-]+", "_", name)
        folder.mkdir(exist_ok=True)
        evaluation.write_classes(found, split.class_names, folder)
    top1, top5 = evaluation.top1(found), evaluation.top5(found)
    result = {
        "model": name,
        "images": len(found),
        "left_out": split.skipped + len(split) - len(found),
        "top1": top1,
        "top5": top5,
        **({"by_size": by_size} if by_size else {}),
        "parameters": cost[0],
        "multiplications": cost[1],
        "data_config": config,
        "per_class": [dataclasses.asdict(one) for one in evaluation.by_class(found, split.class_names)],
    }
    return result, evaluation.Row(name, *cost, top1, by_size, top5)


def class_table(results: list[dict[str, Any]]) -> str:
    """Top-1 of each class, a column a model; of many classes only those that the first model knows least."""
    classes = [one for one in zip(*(result["per_class"] for result in results), strict=True) if one[0]["images"]]
    few = classes
    if len(classes) > MOST_CLASSES:
        few = sorted(classes, key=lambda one: one[0]["top1"])[:MOST_CLASSES]
    cells = [["class", "images", *(f"{number}. model" for number in range(1, len(results) + 1))]]
    cells += [[one[0]["name"], str(one[0]["images"]), *(f"{each['top1']:.2f}" for each in one)] for one in few]
    rest = len(classes) - len(few)
    more = (
        f"\n… and {rest} classes more, which the first model knows better: --json or --output has them" if rest else ""
    )
    return evaluation.aligned(cells) + more


if __name__ == "__main__":
    sys.exit(faults.run(main))
