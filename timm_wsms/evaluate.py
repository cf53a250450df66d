"""Accuracy of trained models on images: top-1, top-5, and class by class.

    python -m timm_wsms.evaluate MODEL [MODEL …] --data SOURCE [--json FILE] [--output FOLDER] [--cascade POINTS]

A model is a checkpoint folder, a name on the Hub (`hf-hub:owner/name`), or a timm model name. The source is what
`--data.source` of the training script takes. Images are prepared as in timm's validate.py: by the model's own config,
at the size it recommends for evaluation. With several processes (`accelerate launch -m timm_wsms.evaluate …`) the
figures are the same. With `--cascade 1.0`, networks of averaged logits are also run with the small image first.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_wsms import cli_errors, evaluation
from timm_wsms.data import Split, load_split, summary
from timm_wsms.errors import UserError
from timm_wsms.evaluation import cascade, leaderboard
from timm_wsms.evaluation.model_loading import file_name, timm_name
from timm_wsms.evaluation.options import REMEDIES, AccuracyOptions, parse
from timm_wsms.evaluation.setup import Prepared, at_factor, prepare, start
from timm_wsms.files import atomic_write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

PRINTED_CLASSES = 20  # at most: those that are recognized least often


def main(argv: list[str] | None = None) -> None:
    """Evaluates the models that the command line names, prints a table, and writes what the options ask for.

    Raises:
        UserError: a mistake that the user can fix; the message names the option.
    """
    names, options = parse(argv, AccuracyOptions, "evaluate", __doc__.splitlines()[0])
    evaluate(names, options)


def evaluate(names: list[str], options: AccuracyOptions) -> None:
    """Evaluates models on one source."""
    for name in names:
        timm_name(name)  # all of them, before the first is evaluated
    if options.cascade is not None and not 0 < options.cascade < 100:
        raise UserError(f"--cascade is {options.cascade:g}; give points of accuracy between 0 and 100, such as 1")
    if not all(0 < factor < float("inf") for factor in options.image_factors):
        raise UserError(f"--image_factors is {options.image_factors}; give positive numbers, such as [0.5, 0.71]")
    accelerator = start(options)
    with accelerator.main_process_first():  # the others then find the data in the cache
        split = load_split(options.data_settings(), limit=options.limit, seed=options.seed)
    accelerator.print("\n".join(summary.lines(summary.describe({"test": split}, options.data_settings()))))
    held_out = None
    if options.cascade is not None:
        split, held_out, remark = cascade.divide(split, options.data_settings(), options.seed)
        accelerator.print(f"cascade: {remark}")
        cascade.check(names, options, held_out, accelerator)
    results, rows = [], []
    for name in names:
        result, own_rows = measure(name, split, options, accelerator, held_out)
        results.append(result)
        rows += own_rows
        count = evaluation.image_count(result["images"], result["left_out"])
        accelerator.print(f"{name}: {result['top1']:.2f} % of {count}")
        if options.append and accelerator.is_main_process:
            shared = {"split": split.name, "precision": options.precision}
            figures = {name: value for name, value in result.items() if name != "per_class"}
            leaderboard.append(options.append, leaderboard.entry("accuracy", options.data, {**figures, **shared}))
        if options.json and accelerator.is_main_process:
            what = {
                "data": options.data,
                "split": split.name,
                "limit": options.limit,
                "precision": options.precision,
                "models": results,
            }
            atomic_write_text(Path(options.json), json.dumps(what, indent=2, ensure_ascii=False) + "\n")
    accelerator.print(f"\n{evaluation.text_table(rows)}\n\n{class_table(results)}")
    if options.cascade is not None and options.output and accelerator.is_main_process:
        title = f"{len(split)} images of {split.name}"
        evaluation.plot_costs(*cascade.curves_and_points(results), Path(options.output) / "cascade.png", title)
    accelerator.end_training()


def measure(
    name: str, split: Split, options: AccuracyOptions, accelerator: Accelerator, held_out: Split | None = None
) -> tuple[dict[str, Any], list[evaluation.Row]]:
    """Evaluates one model.

    Args:
        name: as the user wrote it.
        split: to evaluate on.
        options: the command's options.
        accelerator: gives the device and the other processes.
        held_out: other images, to calibrate a cascade on; None for no cascade.

    Returns:
        All its figures, and its rows in the table: one per image size.

    Raises:
        UserError: it cannot be loaded, or does not fit the data.
    """
    one = prepare(name, split, options, accelerator)
    if one.remark:
        accelerator.print(f"{name}: {one.remark}")
    resized = [at_factor(one, name, split, options, accelerator, factor) for factor in options.image_factors]
    found, row = predict(name, one, split, accelerator)
    if options.output and accelerator.is_main_process:
        folder = Path(options.output) / file_name(name)
        folder.mkdir(exist_ok=True)
        evaluation.write_classes(found, one.class_names, folder)
    result = {
        "model": name,
        "images": len(found),
        "left_out": split.skipped + len(split) - len(found),
        "top1": row.accuracy,
        "top5": row.top5,
        **({"by_size": row.by_size} if row.by_size else {}),
        "parameters": row.parameters,
        "multiplications": row.multiplications,
        "data_config": one.config,
        "model_kwargs": options.model_kwargs,
        "per_class": [dataclasses.asdict(each) for each in evaluation.by_class(found, one.class_names)],
    }
    if held_out is not None and cascade.is_cascade(one.network):
        settings, points = options.data_settings(), options.cascade or 0.0
        spent = cascade.measure_cascade(one, held_out, settings, accelerator, points, sweep=bool(options.output))
        accelerator.print(f"\n{name}\n{cascade.cascade_table(spent, evaluation.top1(found))}\n")
        result["cascade"] = spent
    others = [predict(name, other, split, accelerator)[1] for other in resized]
    if others:
        result["image_sizes"] = [
            {"input_size": other.input_size, "multiplications": other.multiplications, "top1": other.accuracy}
            for other in others
        ]
    return result, [row, *others]


def predict(
    name: str, one: Prepared, split: Split, accelerator: Accelerator
) -> tuple[evaluation.Predictions, evaluation.Row]:
    """What a model says of every image, and its row in the table."""
    cost = evaluation.parameters(one.network), evaluation.multiplications(one.network, one.config["input_size"])
    found = evaluation.predict(one.ordered, one.loader, accelerator, len(split), progress=True)
    by_size = {} if split.object_sizes is None else evaluation.accuracy_by_size(found, split.object_sizes)
    top1, top5 = evaluation.top1(found), evaluation.top5(found)
    return found, evaluation.Row(name, *cost, top1, by_size, top5, one.config["input_size"])


def class_table(results: list[dict[str, Any]]) -> str:
    """Top-1 of each class, one column per model; if there are many, only those that the first model knows least."""
    # The data's classes come first, whatever others a model has.
    classes = [one for one in zip(*(result["per_class"] for result in results), strict=False) if one[0]["images"]]
    few = classes
    if len(classes) > PRINTED_CLASSES:
        few = sorted(classes, key=lambda one: one[0]["top1"])[:PRINTED_CLASSES]
    cells = [["class", "images", *(f"{number}. model" for number in range(1, len(results) + 1))]]
    cells += [[one[0]["name"], str(one[0]["images"]), *(f"{each['top1']:.2f}" for each in one)] for one in few]
    rest = len(classes) - len(few)
    more = (
        f"\n… and {rest} more classes, which the first model knows better: --json or --output has them" if rest else ""
    )
    return evaluation.aligned(cells) + more


if __name__ == "__main__":
    sys.exit(cli_errors.run(main, REMEDIES))
