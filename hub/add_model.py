"""Adds a trained model to the repository, as a Hub repo would hold it: hub/models/<name>/, with a card.

    python hub/add_model.py RUN/model --as NAME [--beside OTHER_RUN/model] [--data uoft-cs/cifar10]

The card shows the model's figures next to those of another run, such as the plain backbone with the same settings. They
come from the run's own evaluation. If its images were used to choose settings, give the figures of a separate test
split:

    python -m timm_wsms.evaluate RUN/model OTHER_RUN/model --data FOLDER --split test --json test.json
    python hub/add_model.py RUN/model --as NAME --beside OTHER_RUN/model --evaluated test.json
"""

import argparse
import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import timm

import timm_wsms  # noqa: F401  registers the names
from timm_wsms import cli_errors
from timm_wsms.data import DataSettings, data_config
from timm_wsms.errors import UserError
from timm_wsms.evaluation import Row
from timm_wsms.files import atomic_folder, write_tensors
from timm_wsms.foreign import clean, read_json, read_yaml, understood
from timm_wsms.hub import card, results
from timm_wsms.hub.verify_folder import TENSORS, check_files, check_folder
from timm_wsms.training.checkpoint_folder import reference_tensors

ROOT = Path(__file__).resolve().parents[1]
OWN = (
    "model",
    "model_kwargs",
    "baseline",
    "baseline_kwargs",
    "output",
    "resume",
    "seed",
    "stage_loss",
    "hub",
)  # settings that may differ


def add_model(
    folder: Path, target: Path, beside: Path | None = None, data: str | None = None, evaluated: Path | None = None
) -> None:
    """Copies a checkpoint folder, adds the figures of another run, and rewrites its card.

    Args:
        folder: The `model` folder of a run.
        target: Where the copy goes; what was there before is removed.
        beside: The `model` folder of the run to compare with.
        data: The data set's name on the Hub, if the run read it from a local folder.
        evaluated: Figures to use instead of the runs' own: what `python -m timm_wsms.evaluate --json` wrote for the
            same folders.

    Raises:
        UserError: The folder is inconsistent, the runs are not comparable, or a folder was not evaluated.
    """
    check_folder(folder)
    own = results.read(folder)
    if own.taken:
        raise UserError(f"{folder} is a stage of a network; add the network, or publish the stage with --as-backbone")
    rows, on = [with_image_size(row, folder) for row in own.rows], own.evaluated
    if beside:
        if beside.resolve() == folder.resolve():
            raise UserError(f"{beside} is the folder itself; give --beside the run to compare it with")
        check_files(beside)
        check_alike(folder, beside)
        rows = [with_image_size(results.read(beside).rows[-1], beside), rows[-1]]
    if evaluated:
        rows, on = read_evaluation(evaluated, rows[-2 if beside else -1 :], [beside, folder] if beside else [folder])
    with atomic_folder(target) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        results.write(copy, rows, own.hardware, data or own.data, evaluated=on)
        # rewritten from noise: folders of older runs hold two of the run's test images
        write_tensors(copy / TENSORS, reference_tensors(timm.create_model(f"local-dir:{copy}", pretrained=True)))
        card.write(copy)


def with_image_size(row: Row, folder: Path) -> Row:
    """The row of a folder's model, with the image size, which older runs left out."""
    size = read_json(folder / "config.json")["pretrained_cfg"]["input_size"]
    return row if row.input_size else dataclasses.replace(row, input_size=size)


def read_evaluation(file: Path, rows: list[Row], folders: list[Path]) -> tuple[list[Row], results.Evaluated]:
    """Replaces the accuracies of rows by those of an evaluation.

    Args:
        file: Written by `python -m timm_wsms.evaluate --json`.
        rows: One per folder.
        folders: Checkpoint folders.

    Raises:
        UserError: A folder was not evaluated, or on a different data set than it was trained on, or on different images
            than another folder.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}; write it with python -m timm_wsms.evaluate --json {file}")
    content = clean(read_json(file))
    with understood(file):
        found = {Path(model["model"].removeprefix("local-dir:")).resolve(): model for model in content["models"]}
        missing = [folder for folder in folders if folder.resolve() not in found]
        if missing:
            raise UserError(f"{file} has no figures for {missing[0]}; evaluate it with python -m timm_wsms.evaluate")
        models: list[dict[str, Any]] = [found[folder.resolve()] for folder in folders]
        counts = {model["images"] for model in models}
        if len(counts) > 1 or content["limit"] is not None or any(model["left_out"] for model in models):
            raise UserError(f"{file}: images were left out of the evaluation; evaluate all on the same images")
        new = []
        for row, folder, model in zip(rows, folders, models, strict=True):
            source = read_yaml(folder / "settings.yaml")["data"]["source"]
            if (on := Path(content["data"]).resolve().name) != Path(source).name:  # settings name no parent folders
                raise UserError(
                    f"{file} has figures for {on}, but {folder} was trained on {source}; evaluate it on that"
                )
            if list(row.input_size or []) != list(model["data_config"]["input_size"]):
                raise UserError(f"{file}: {model['model']} was evaluated at another image size; leave out --input_size")
            if differ := evaluated_otherwise(folder, model, content["precision"]):
                raise UserError(f"{file}: {model['model']} was evaluated with different {differ}; leave that out")
            new.append(dataclasses.replace(row, accuracy=model["top1"], top5=model["top5"], by_size={}, by_factor={}))
        return new, results.Evaluated(content["split"], counts.pop())


def evaluated_otherwise(folder: Path, model: dict[str, Any], precision: str) -> str:
    """The first setting that differs between the evaluation and the model's folder; empty if there is none."""
    built = timm.create_model(f"local-dir:{folder}")
    expected = json.loads(json.dumps(data_config(built, DataSettings(), use_test_size=True)))
    pairs = {name: (value, model["data_config"].get(name)) for name, value in expected.items()}
    pairs |= {"precision": ("no", precision), "model_kwargs": ({}, model.get("model_kwargs", {}))}
    return next((name for name, (one, other) in pairs.items() if one != other), "")


def check_alike(folder: Path, beside: Path) -> None:
    """Check that two runs can be compared: only the network, its loss per stage, image size and seed may differ.

    Raises:
        UserError: Naming the settings that differ.
    """
    one, other = (read_yaml(each / "settings.yaml") for each in (folder, beside))
    for settings in (one, other):  # the table says how large each model's images are
        settings.get("data", {}).pop("input_size", None)
    differ = [key for key in one.keys() | other.keys() if key not in OWN and one.get(key) != other.get(key)]
    if differ:
        raise UserError(f"{beside} was trained with different {' and '.join(sorted(differ))}; compare like with like")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the `model` folder of a run")
    parser.add_argument("--as", dest="name", required=True, help="name under hub/models")
    parser.add_argument("--beside", type=Path, help="the `model` folder of the run to compare with")
    parser.add_argument("--data", help="the data set's name on the Hub, if the run read it from a local folder")
    parser.add_argument("--evaluated", type=Path, help="what timm_wsms.evaluate --json wrote for the folders")
    options = parser.parse_args()
    if not re.fullmatch(r"\w[\w.-]*", options.name):
        raise UserError(
            f"--as is {options.name!r}; give a name for a folder under hub/models, of letters, digits, _ . -"
        )
    target = ROOT / "hub" / "models" / options.name
    add_model(options.folder, target, options.beside, options.data, options.evaluated)
    print(target)


if __name__ == "__main__":
    sys.exit(cli_errors.run(main, cli_errors.Remedies()))
